"""The headers that users include: those that thinwire_public_headers() lists in the CMake files, with
those that these include."""

import pathlib
import re

import source_tree

CALL = re.compile(r"^thinwire_public_headers\(\s*(\w+)\s+([^)]*)\)", re.MULTILINE)
# A header in docs/api.md, as a user includes it.
NAMED = re.compile(r"`thinwire/([\w./]+\.h)`")


def listed(root):
    """(public headers, all installed ones): relative to the root -> the library that has them."""
    public, installed = {}, {}
    for file in source_tree.files_of(root, set(), {"CMakeLists.txt"}):
        for library, names in CALL.findall((root / file).read_text(encoding="utf-8")):
            mine, _, details = names.partition("DETAIL")
            public |= {(file.parent / name).as_posix(): library for name in mine.split()}
            installed |= {(file.parent / name).as_posix(): library for name in details.split()}
    return public, installed | public


def violations(root):
    public, headers = listed(root)
    found, included = [], set(public)
    for header, library in headers.items():
        if not (root / header).is_file():
            found.append(f"{header} is listed and does not exist")
            continue
        core = header.split("/")[0] in ("common", "compressors")
        if core != (library == "thinwire_core"):
            found.append(f"{header} belongs to the other library than {library}")
        for include in source_tree.includes_of(root, pathlib.PurePosixPath(header)):
            target = include.path.removeprefix("thinwire/")
            if target == include.path:
                continue
            included.add(target)
            if target not in headers:
                found.append(f"{include}: an installed header includes a private one")
    return found + [f"{header} is listed as a detail and no installed header includes it"
                    for header in sorted(set(headers) - included)]


def documentation(root):
    """What docs/api.md leaves out, and what it names that is not public."""
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    named, headers = set(NAMED.findall(text)), set(listed(root)[0])
    return ([f"docs/api.md lacks {header}" for header in sorted(headers - named)]
            + [f"docs/api.md names {header}, which is not public"
               for header in sorted(named - headers)])
