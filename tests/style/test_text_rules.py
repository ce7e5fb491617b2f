"""The tree keeps the rules of text_rules.py, and each rule sees what it is there for."""

import pathlib
import tempfile
import unittest

import source_tree
import text_rules

NOTE = "TO" + "DO"
HOME = "/ho" + "me/ann/data"


class TextRules(unittest.TestCase):
    def check_tree(self, rule):
        found = rule(source_tree.root_folder())
        if found:
            self.fail("\n".join(found))

    def check_rule(self, rule, name, text, expected):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "common").mkdir()
            (root / "common" / name).write_text(text)
            (root / "build").mkdir()
            (root / "build" / name).write_text(text)
            found = rule(root)
        self.assertEqual(len(found), expected, found)
        for line in found:
            self.assertIn(f"common/{name}", line)

    def test_no_left_over_notes(self):
        self.check_tree(text_rules.left_over_notes)

    def test_a_left_over_note_is_seen(self):
        self.check_rule(text_rules.left_over_notes, "a.cpp", f"int a;  // {NOTE} later\n", 1)
        self.check_rule(text_rules.left_over_notes, "a.cpp", f"int {NOTE}S;\n", 0)

    def test_no_paths_of_one_machine(self):
        self.check_tree(text_rules.machine_paths)

    def test_a_path_of_one_machine_is_seen(self):
        self.check_rule(text_rules.machine_paths, "a.py", f"open('{HOME}')\n", 1)
        self.check_rule(text_rules.machine_paths, "a.md", "see docs/home/page and /usr/bin\n", 0)

    def test_calls_that_depend_on_the_process_stay_where_they_are(self):
        self.check_tree(text_rules.misplaced_calls)

    def test_a_misplaced_call_is_seen(self):
        self.check_rule(text_rules.misplaced_calls, "a.cpp", "std::ostringstream out;\n", 1)
        self.check_rule(text_rules.misplaced_calls, "a.cpp", "HWY_DYNAMIC_DISPATCH(F)(x);\n", 1)
        self.check_rule(text_rules.misplaced_calls, "text.cpp", "std::ostringstream out;\n", 0)

    def test_files_are_short(self):
        self.check_tree(text_rules.long_files)

    def test_a_long_file_is_seen(self):
        self.check_rule(text_rules.long_files, "a.h", "\n" * 501, 1)
        self.check_rule(text_rules.long_files, "a.h", "\n" * 500, 0)

    def test_all_tests_are_listed(self):
        self.check_tree(text_rules.unlisted_tests)

    def test_an_unlisted_test_is_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            room = pathlib.Path(folder, "tests", "room")
            room.mkdir(parents=True)
            (room / "CMakeLists.txt").write_text("foreach(part one)\n")
            for name in ("test_one.cpp", "test_two.cpp", "helper.cpp"):
                (room / name).write_text("")
            self.assertEqual(text_rules.unlisted_tests(pathlib.Path(folder)),
                             ["tests/room/test_two.cpp: no CMakeLists.txt names it"])

    def test_lines_end_tidily(self):
        self.check_tree(text_rules.untidy_ends)

    def test_an_untidy_end_is_seen(self):
        self.check_rule(text_rules.untidy_ends, "a.h", "int a; \n", 1)
        self.check_rule(text_rules.untidy_ends, "a.h", "int a;\r\n", 1)
        self.check_rule(text_rules.untidy_ends, "a.h", "int a;", 1)
        self.check_rule(text_rules.untidy_ends, "a.h", "int a;\n", 0)


if __name__ == "__main__":
    unittest.main()
