// Text of unknown origin, made fit for a terminal or a log.
#pragma once

#include <string>
#include <string_view>

namespace thinwire {

enum class Lines {
  kKeep,    // newlines and tabs pass
  kEscape,  // the result is one line
};

// `text` with everything escaped, as \x1b, that a terminal would obey instead of showing: control
// characters (C0, DEL, C1), marks that change the direction of writing, and bytes that are not
// UTF-8. Names and other strings in a file or a message belong to whoever made it.
std::string printable(std::string_view text, Lines lines = Lines::kEscape);

}  // namespace thinwire
