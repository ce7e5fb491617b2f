"""Public headers include public headers alone, and the documentation has them all."""

import pathlib
import tempfile
import unittest

import public_headers
import source_tree


class PublicHeaders(unittest.TestCase):
    def test_the_tree(self):
        root = source_tree.root_folder()
        self.assertGreater(len(public_headers.listed(root)[0]), 10)
        found = public_headers.violations(root) + public_headers.documentation(root)
        if found:
            self.fail("\n".join(found))

    def check(self, files, expected, rule=public_headers.violations):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            self.assertEqual(rule(root), expected)

    def test_a_private_header_behind_a_public_one(self):
        self.check({"common/CMakeLists.txt": "thinwire_public_headers(thinwire_core a.h)\n",
                    "common/a.h": '#include "thinwire/common/b.h"\n', "common/b.h": ""},
                   ['common/a.h:1: #include "thinwire/common/b.h": an installed header includes a '
                    'private one'])

    def test_a_header_that_is_not_there(self):
        self.check({"moe/CMakeLists.txt": "thinwire_public_headers(thinwire\n  a/b.h\n)\n"},
                   ["moe/a/b.h is listed and does not exist"])

    def test_details(self):
        files = {"common/CMakeLists.txt": "thinwire_public_headers(thinwire_core a.h DETAIL b.h)\n",
                 "common/a.h": '#include "thinwire/common/b.h"\n', "common/b.h": ""}
        self.check(files, [])
        self.check(files | {"common/a.h": ""},
                   ["common/b.h is listed as a detail and no installed header includes it"])
        # The documentation is of public headers alone.
        self.check(files | {"docs/api.md": "`thinwire/common/a.h`\n"}, [],
                   public_headers.documentation)

    def test_the_wrong_library(self):
        self.check({"moe/CMakeLists.txt": "thinwire_public_headers(thinwire_core a.h)\n",
                    "moe/a.h": ""}, ["moe/a.h belongs to the other library than thinwire_core"])

    def test_documentation_that_differs(self):
        self.check({"moe/CMakeLists.txt": "thinwire_public_headers(thinwire a.h b.h)\n",
                    "docs/api.md": "`thinwire/moe/a.h`, `thinwire/moe/c.h`\n"},
                   ["docs/api.md lacks moe/b.h",
                    "docs/api.md names moe/c.h, which is not public"],
                   public_headers.documentation)


if __name__ == "__main__":
    unittest.main()
