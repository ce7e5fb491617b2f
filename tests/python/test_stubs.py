"""The stubs of the compiled module (thinwire/_C.pyi) name what the module has, argument by argument."""

import ast
import inspect
import os
import pathlib
import unittest

import ranks  # noqa: F401  finds the package

SOURCE = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"])
WORTH = ("__init__", "__enter__", "__exit__")


def public(name):
    return not name.startswith("_") or name in WORTH


def arguments_of_stub(function):
    return [argument.arg for argument in function.args.args if argument.arg != "self"]


def arguments_of(function):
    """The names in the first line of the documentation that pybind11 writes; None for *args."""
    line = next(line for line in function.__doc__.splitlines() if "(" in line)
    names, depth, begin = [], 0, line.index("(") + 1
    for at in range(begin, len(line)):
        depth += (line[at] in "([") - (line[at] in ")]")
        if depth < 0 or (depth == 0 and line[at] == ","):
            names.append(line[begin:at].split(":")[0].strip())
            begin = at + 1
        if depth < 0:
            break
    names = [name for name in names if name and name != "self"]
    return None if any(name.startswith("*") for name in names) else names


class Stubs(unittest.TestCase):
    def check_function(self, name, stub, function):
        found, said = arguments_of(function), arguments_of_stub(stub)
        if found is None:
            return
        self.assertEqual(len(found), len(said), f"{name}: {found}")
        for real, written in zip(found, said):
            if not real.startswith("arg"):
                self.assertEqual(real, written, name)

    def check_members(self, where, body, there):
        written = {node.name: node for node in body
                   if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and public(node.name)}
        written.update({node.target.id: node for node in body if isinstance(node, ast.AnnAssign)})
        # A class that Python cannot make has an __init__ that only refuses.
        self.assertEqual(set(written), {name for name, value in there.items() if public(name) and not (
            name == "__init__" and not value.__doc__.startswith("__init__(self"))}, where)
        for name, node in written.items():
            value = there[name]
            if isinstance(node, ast.ClassDef):
                self.check_members(name, node.body, vars(value))
            elif isinstance(node, ast.FunctionDef) and not isinstance(value, property):
                self.check_function(f"{where}.{name}", node, value)

    def test_they_agree_with_the_module(self):
        from thinwire import _load
        module = _load.module()
        tree = ast.parse((SOURCE / "python" / "thinwire" / "_C.pyi").read_text(encoding="utf-8"))
        peft = next(node for node in tree.body
                    if isinstance(node, ast.ClassDef) and node.name == "_Peft")
        self.check_members("_C", tree.body, vars(module))
        self.check_members("peft", peft.body, vars(module.peft))

    def check_annotated(self, name, function):
        signature = inspect.signature(function)
        self.assertIsNot(signature.return_annotation, signature.empty, name)
        for parameter in signature.parameters.values():
            if parameter.name != "self":
                self.assertIsNot(parameter.annotation, signature.empty, f"{name}({parameter.name})")

    def test_what_users_call_has_types(self):
        import thinwire
        places = [thinwire, *(getattr(thinwire, name) for name in ("fsdp", "peft", "scalars"))]
        checked = 0
        for place in places:
            names = thinwire.__all__ if place is thinwire else vars(place)
            for name in names:
                value = getattr(place, name)
                if name.startswith("_") or (place is not thinwire and getattr(
                        value, "__module__", "") != place.__name__):
                    continue
                if inspect.isfunction(value):
                    self.check_annotated(name, value)
                    checked += 1
                elif inspect.isclass(value) and name in (
                        "Compression", "OuterOptimizer", "MoELayer", "Writer"):
                    for method, function in vars(value).items():
                        if inspect.isfunction(function) and not method.startswith("_") and (
                                method != "train"):  # torch's own
                            self.check_annotated(f"{name}.{method}", function)
                            checked += 1
        self.assertGreater(checked, 35)

    def test_a_type_checker_finds_every_public_name(self):
        import thinwire
        tree = ast.parse((SOURCE / "python" / "thinwire" / "__init__.py").read_text("utf-8"))
        checking, = [node for node in tree.body if isinstance(node, ast.If)
                     and "TYPE_CHECKING" in ast.unparse(node.test)]
        exported = [alias.asname for node in checking.body for alias in node.names]
        self.assertEqual(sorted(exported), thinwire.__all__)

    def test_every_public_name_says_what_it_is(self):
        import thinwire
        for name in thinwire.__all__:
            value = getattr(thinwire, name)
            if name.startswith("__"):
                continue
            self.assertTrue(inspect.getdoc(value), name)
            if not inspect.isclass(value) or issubclass(value, Exception):
                continue
            for method, function in vars(value).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    if method not in ("forward", "train", "zero_grad"):  # torch's own
                        self.assertTrue(inspect.getdoc(function), f"{name}.{method}")


if __name__ == "__main__":
    unittest.main()
