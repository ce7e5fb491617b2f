"""The tree keeps the include law, and the check of it sees every kind of violation."""

import pathlib
import tempfile
import unittest

import include_law
import source_tree

HEADERS = ["common/error.h", "compressors/codecs/codec.h", "comm/group.h", "moe/router/router.h",
           "torch_ext/ddp.h", "launch/world.h", "tests/support/ranks.h", "thinwire.h"]


def violations_of(file, line):
    """Violations of a tree of HEADERS and one file that holds `line`."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in [*HEADERS, file]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("#pragma once\n")
        (root / file).write_text(f"// A file.\n{line}\n")
        return include_law.violations(root)


class IncludeLaw(unittest.TestCase):
    def test_tree_keeps_the_law(self):
        root = source_tree.root_folder()
        self.assertGreater(len(source_tree.cpp_files(root)), 10)
        found = include_law.violations(root)
        if found:
            self.fail("\n".join(found))

    def test_rooms_form_floors(self):
        floors = include_law.floors(source_tree.root_folder())
        self.assertGreater(len(floors), 5)
        self.assertEqual(floors[0], ["common"])

    def test_a_circle_of_rooms_is_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, line in (("comm/wire/a.h", '#include "thinwire/comm/link/b.h"'),
                               ("comm/link/b.h", '#include "thinwire/comm/join/c.h"'),
                               ("comm/join/c.h", '#include "thinwire/comm/wire/d.h"'),
                               ("comm/wire/d.h", "")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(f"#pragma once\n{line}\n")
            with self.assertRaisesRegex(ValueError, "circle(.|\n)*comm/link/b.h:2"):
                include_law.floors(root)

    def test_violations_are_seen(self):
        for file, line, reason in [
                ("common/a.h", '#include "thinwire/compressors/codecs/codec.h"', "must not include"),
                ("compressors/a.h", '#include "thinwire/comm/group.h"', "must not include"),
                ("compressors/kernels/a.h", '#include "thinwire/comm/group.h"', "must not include"),
                ("comm/average/a.cpp", '#include "thinwire/moe/router/router.h"', "must not include"),
                ("moe/a.cpp", '#include "thinwire/torch_ext/ddp.h"', "must not include"),
                ("torch_ext/a.cpp", '#include "thinwire/moe/router/router.h"', "must not include"),
                ("torch_ext/a.cpp", '#include "thinwire/launch/world.h"', "must not include"),
                ("launch/a.cpp", '#include "thinwire/tests/support/ranks.h"', "must not include"),
                ("common/a.cpp", '#include "thinwire/thinwire.h"', "umbrella"),
                ("common/a.cpp", '#include "error.h"', "thinwire/<folder>"),
                ("comm/a.cpp", '#include "../common/error.h"', "thinwire/<folder>"),
                ("comm/a.cpp", "#include <thinwire/common/error.h>", "with quotes"),
                ("comm/a.cpp", '#include "thinwire/common/missing.h"', "there is no file"),
                ("compressors/a.cpp", "#include <ATen/ATen.h>", "does not see torch"),
                ("common/a.cpp", "#include <c10/util/Half.h>", "does not see torch"),
                ("comm/group.cpp", "#include <mpi.h>", "includes MPI"),
                ("comm/backend/mpi/tools.h", "#include <mpi.h>", "includes MPI"),
                ("launch/mpi_start.cpp", "  #  include <mpi.h>", "includes MPI"),
                ("comm/a.cpp", "#include <cuda_runtime.h>", "include CUDA"),
                ("comm/a.cpp", "#include <nccl.h>", "include CUDA"),
                ("compressors/kernels/a.cu", "#include <cuda_fp16.h>", "include CUDA"),
                ("torch_ext/a.cpp", "#include <c10/cuda/CUDAStream.h>", "include CUDA"),
                ("comm/a.cpp", "#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>",
                 "include CUDA"),
                ("comm/a.cpp", "#include <fmt/format.h>", "fmt and spdlog"),
                ("common/a.h", "#include <spdlog/spdlog.h>", "fmt and spdlog"),
        ]:
            with self.subTest(file=file, line=line):
                found = violations_of(file, line)
                self.assertEqual(len(found), 1, found)
                self.assertIn(reason, found[0])
                self.assertIn(f"{file}:2:", found[0])

    def test_lawful_includes_pass(self):
        for file, line in [
                ("compressors/kernels/a.h", '#include "thinwire/common/error.h"'),
                ("launch/a.cpp", '#include "thinwire/moe/router/router.h"'),
                ("examples/a.cpp", "#include <thinwire/thinwire.h>"),
                ("tests/moe/a.cpp", '#include "thinwire/torch_ext/ddp.h"'),
                ("comm/backend/mpi/backend.cpp", "#include <mpi.h>"),
                ("comm/backend/nccl/backend.cpp", "#include <nccl.h>"),
                ("compressors/kernels/a_cuda.cu", "#include <cuda_runtime.h>"),
                ("common/a.cpp", "#include <spdlog/spdlog.h>"),
                ("comm/a.cpp", "#include <ATen/ATen.h>"),
                ("tests/support/a.cpp", '#include "ranks.h"'),
                ("common/a.cpp", '// #include "thinwire/comm/group.h"'),
        ]:
            with self.subTest(file=file, line=line):
                self.assertEqual(violations_of(file, line), [])


if __name__ == "__main__":
    unittest.main()
