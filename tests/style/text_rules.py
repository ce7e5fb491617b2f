"""Rules about the text of the tree: no left-over notes, no paths of one machine, short files."""

import re

import source_tree

LONGEST_FILE = 500

# Written in pieces, so that this file keeps the rule itself.
LEFT_OVER_NOTE = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"])
                            + r")\b")
# A home or work folder names one machine. /opt, /usr, /tmp and the like are the same everywhere.
MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(work|root|home|Users|mnt|workspace|data)/[\w.-]+")
# What gives other texts in another locale, and what changes Highway for others in the process: the
# libraries have concat(), number_text(), std::from_chars and THINWIRE_DISPATCH for it.
ONLY_IN = {
    re.compile(r"\bstd::(ostringstream|stringstream|stod|stof|strtod|strtof|atof)\b"):
        # The second one: bytes of torch's archives, no numbers.
        ["common/text.cpp", "torch_ext/checkpoint/program_parts.cpp"],
    re.compile(r"\b(HWY_DYNAMIC_DISPATCH|SetSupportedTargetsForTest)\b"):
        ["compressors/kernels/dispatch.h"],
}
LIBRARY_FOLDERS = ("common/", "compressors/", "comm/", "moe/", "torch_ext/", "launch/")


def lines_matching(root, pattern, what, files=None):
    found = []
    for file in files if files is not None else source_tree.text_files(root):
        for number, line in enumerate((root / file).read_text(encoding="utf-8").splitlines(), 1):
            match = pattern.search(line)
            if match:
                found.append(f"{file}:{number}: {what} '{match[0]}'")
    return found


def misplaced_calls(root):
    found = []
    code = [str(file) for file in source_tree.code_files(root)]
    code = [file for file in code if file.startswith(LIBRARY_FOLDERS)]
    for pattern, places in ONLY_IN.items():
        files = [file for file in code if file not in places]
        found += lines_matching(root, pattern, "not here:", files)
    return found


def left_over_notes(root):
    return lines_matching(root, LEFT_OVER_NOTE, "left-over note")


def machine_paths(root):
    return lines_matching(root, MACHINE_PATH, "path of one machine")


def long_files(root):
    found = []
    for file in source_tree.code_files(root):
        count = len((root / file).read_text(encoding="utf-8").splitlines())
        if count > LONGEST_FILE:
            found.append(f"{file}: {count} lines, more than {LONGEST_FILE}")
    return found


def unlisted_tests(root):
    """Tests that no CMakeLists.txt names, and that nobody runs therefore."""
    found = []
    for file in source_tree.code_files(root):
        if not re.fullmatch(r"test_\w+\.(cpp|py)", file.name) or file.parts[0] != "tests":
            continue
        # One that lists parts by a loop has their names without "test_".
        names = re.compile(rf"\b(test_)?{file.stem.removeprefix('test_')}\b")
        lists = [root / folder / "CMakeLists.txt" for folder in file.parents]
        if not any(names.search(path.read_text(encoding="utf-8"))
                   for path in lists if path.is_file()):
            found.append(f"{file}: no CMakeLists.txt names it")
    return found


def untidy_ends(root):
    """Files with trailing blanks, carriage returns, or no newline at the end."""
    found = []
    for file in source_tree.text_files(root):
        data = (root / file).read_bytes()
        if data and not data.endswith(b"\n"):
            found.append(f"{file}: no newline at the end")
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if re.search(rb"[ \t\r]+\n$", line):
                found.append(f"{file}:{number}: blanks at the end of the line")
    return found
