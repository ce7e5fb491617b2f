"""The include law of the source tree, as a function from a tree to its violations.

    common <- compressors <- comm <- {moe, torch_ext} <- launch <- {examples, python}

An arrow points to who may include it. moe and torch_ext do not include each other, tests and
benchmarks may include everything, nothing includes tests but tests. Within a layer the rooms (folders)
form floors as well: no two of them include each other, directly or in a circle.
"""

import pathlib
import re

import source_tree

# Folder -> the folders of the project that its files may include.
LAYERS = {
    "common": {"common"},
    "compressors": {"common", "compressors"},
    "comm": {"common", "compressors", "comm"},
    "moe": {"common", "compressors", "comm", "moe"},
    "torch_ext": {"common", "compressors", "comm", "torch_ext"},
    "launch": {"common", "compressors", "comm", "moe", "torch_ext", "launch"},
    "python": {"common", "compressors", "comm", "moe", "torch_ext", "launch", "python"},
    "examples": {"common", "compressors", "comm", "moe", "torch_ext", "launch", "examples"},
}

TORCH = re.compile(r"^(torch|ATen|c10|caffe2|gloo)/")
MPI = re.compile(r"^(mpi|mpi-ext|mpi_portable_platform)\.h$|^boost/mpi")
CUDA = re.compile(
    r"^(cuda|cuda_\w+|cublas\w*|curand\w*|cufft\w*|cusparse\w*|cusolver\w*|cooperative_groups|nccl|"
    r"nvrtc|nvml|driver_types|vector_types)\.h$|^(cub|thrust|cuda|cooperative_groups|nvtx3)/|"
    r"^(c10|ATen)/cuda/|ProcessGroupNCCL\.hpp$|NCCLUtils\.hpp$")
# torch ships another fmt than the system's, so a file that sees torch must not see fmt.
FORMAT = re.compile(r"^(fmt|spdlog)/")


def may_include_cuda(file):
    return file.name.endswith("_cuda.cu") or file.as_posix() == "comm/backend/nccl/backend.cpp"


def may_include_mpi(file):
    return file.parts[:3] == ("comm", "backend", "mpi") and file.suffix == ".cpp"


def may_include_format(file):
    return file.parts[0] == "common" and file.suffix == ".cpp"


def outside_rule(include):
    """Why a header of another project must not be included here, or None."""
    file, path = include.file, include.path
    layer = file.parts[0]
    if layer == "tests":
        return None
    if TORCH.match(path) and layer in ("common", "compressors"):
        return f"{layer}/ does not see torch"
    if MPI.search(path) and not may_include_mpi(file):
        return "only comm/backend/mpi/*.cpp includes MPI"
    if CUDA.search(path) and not may_include_cuda(file):
        return "only *_cuda.cu and comm/backend/nccl/backend.cpp include CUDA"
    if FORMAT.match(path) and not may_include_format(file):
        return "only common/*.cpp includes fmt and spdlog; use thinwire::concat()"
    return None


def project_rule(root, include):
    """Why a header of this project must not be included here or in this way, or None."""
    file, path = include.file, include.path
    layer = file.parts[0]
    if not path.startswith("thinwire/"):
        # A test may have a header beside it.
        if include.quoted and not (layer == "tests" and (root / file).with_name(path).is_file()):
            return 'headers of the project are included as "thinwire/<folder>/<file>"'
        return None
    # Programs that stand for a user's include as a user would.
    is_user = layer == "examples" or file.parts[:2] == ("tests", "install")
    if not include.quoted and not is_user:
        return "headers of the project are included with quotes"
    target = path.removeprefix("thinwire/")
    if not (root / target).is_file():
        return f"there is no file {target}"
    folder = target.split("/")[0] if "/" in target else None
    if folder is None:
        # thinwire/thinwire.h, the whole public face, is for users of the library.
        return None if layer in ("tests", "examples") else "the umbrella header is for users"
    if layer in LAYERS and folder not in LAYERS[layer]:
        return f"{layer}/ must not include {folder}/"
    if layer not in LAYERS and layer != "tests" and folder in ("tests", "examples"):
        return f"nothing outside {folder}/ includes it"
    return None


def rooms(root):
    """Room -> {room that it includes: the first include line that says so}. A room is a folder of
    sources; tests and examples are not rooms of the library."""
    found = {}
    for file in source_tree.cpp_files(root):
        if (file.parts[0] not in LAYERS or file.parts[0] == "examples" or len(file.parts) == 1
                or "headers" in file.parts):  # declarations that stand in for another project's
            continue
        room = found.setdefault(file.parent.as_posix(), {})
        for include in source_tree.includes_of(root, file):
            if not include.path.startswith("thinwire/"):
                continue
            other = pathlib.PurePosixPath(include.path.removeprefix("thinwire/")).parent.as_posix()
            if other not in (".", file.parent.as_posix()):
                room.setdefault(other, include)
    return found


def floors(root):
    """Rooms from the ground up: each includes only rooms of the floors before its own. Raises
    ValueError that names the include lines of a circle."""
    left, built = rooms(root), []
    while left:
        below = {room for floor in built for room in floor}
        floor = sorted(room for room, others in left.items()
                       if all(other in below or other not in left for other in others))
        if not floor:
            raise ValueError("rooms include each other in a circle:\n" + "\n".join(
                str(include) for others in left.values()
                for other, include in others.items() if other in left))
        built.append(floor)
        for room in floor:
            del left[room]
    return built


def violations(root):
    found = []
    for file in source_tree.cpp_files(root):
        if len(file.parts) == 1 or file.parts[0] == "cmake":
            continue
        for include in source_tree.includes_of(root, file):
            reason = outside_rule(include) or project_rule(root, include)
            if reason:
                found.append(f"{include}: {reason}")
    return found


def main():
    """Prints the floors of the tree, the top one first, and what each room includes."""
    root = source_tree.root_folder()
    arrows = rooms(root)
    for number, floor in reversed(list(enumerate(floors(root)))):
        for room in floor:
            print(f"{number:2}  {room:24} {' '.join(sorted(arrows[room])) or '-'}")


if __name__ == "__main__":
    main()
