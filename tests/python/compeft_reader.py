"""Reads ComPEFT files. Written from docs/peft-format.md alone, to prove that the page is enough."""

import bisect
import itertools
import json
import struct

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def bits(data):
    return [byte >> i & 1 for byte in data for i in range(8)]


def rice(codes, p, count):
    stream, entries = iter(bits(codes)), []
    for _ in range(count):
        gap = next(i for i in itertools.count() if next(stream)) << p
        entries += [0] * (gap + sum(next(stream) << i for i in range(p))) + [1]
    return entries


def rans(codes, p, n):
    parts = -(-n // 2**p)
    states = list(struct.unpack_from("<8I", codes, parts))
    words = iter(struct.unpack(f"<{(len(codes) - parts - 32) // 2}H", codes[parts + 32:]))
    mask = bytearray(-(-n // 8))
    for part, level in enumerate(codes[:parts]):
        if level == 0:
            continue
        ones = [bin(byte).count("1") for byte in range(256)]
        frequency = [1 + (level**k * (256 - level)**(8 - k) * (2**15 - 256) >> 64) for k in ones]
        frequency[0 if level <= 128 else 255] += 2**15 - sum(frequency)
        start = list(itertools.accumulate(frequency, initial=0))
        for i in range(part * 2**p // 8, min((part + 1) * 2**p // 8, len(mask))):
            x = states[i % 8]
            byte = mask[i] = bisect.bisect_right(start, x % 2**15) - 1
            x = frequency[byte] * (x >> 15) + x % 2**15 - start[byte]
            states[i % 8] = x if x >= 2**16 else x * 2**16 + next(words)
    assert states == [2**16] * 8 and not list(words)
    return bits(mask)


def level_of(q):
    x = max(q, 64)
    b = x.bit_length() - 1
    return 2 * (b - 6) + (x >> b - 1) % 2


def learned(state, is_set, most):
    q, w = state
    return q + (((65535 if is_set else 0) - q) * (65536 // w) >> 16), min(w + 1, most)


def contexts(codes, count, tensors):
    """`tensors`: (entries, columns of a row, column of the first one) of those in the block."""
    n = sum(entries for entries, _, _ in tensors)
    fresh = (min(max(65536 * count // n, 64), 65535), 12)
    middle = [(5 + 2 * (level % 2)) << level // 2 + 4 for level in range(20)]
    cells = {(r, k): (min(max(middle[r] * middle[k] // fresh[0], 64), 58982), 24)
             for r in range(20) for k in range(20)}
    stream, mask = iter(codes[4:]), []
    span, code = 2**32 - 1, int.from_bytes(codes[:4], "big")
    for entries, width, column in tensors:
        s = next(s for s in itertools.count() if (width - 1) >> s < 16384)
        columns, row = {}, fresh
        for _ in range(entries):
            of_column = columns.get(column >> s, fresh)
            place = level_of(row[0]), level_of(of_column[0])
            bound = (span >> 16) * min(max(cells[place][0], 48), 63488)
            mask.append(int(code < bound))
            if mask[-1]:
                span = bound
            else:
                code, span = code - bound, span - bound
            while span < 2**24:
                span, code = span << 8, code << 8 | next(stream)
            cells[place] = learned(cells[place], mask[-1], 512)
            columns[column >> s] = learned(of_column, mask[-1], 255)
            row = learned(row, mask[-1], 255)
            column += 1
            if column == width:
                column, row = 0, fresh
    assert code == 0 and not list(stream)
    return mask


def block(data, n, tensors=()):
    mode, p, count = struct.unpack_from("<BBI", data)
    cut = len(data) - ((n if mode == 4 else count) + 7) // 8
    body, signs = data[6:cut], bits(data[cut:])
    mask = {0: lambda: [], 1: lambda: rice(body, p, count), 2: lambda: rans(body, p, n),
            3: lambda: bits(body), 4: lambda: bits(body),
            5: lambda: contexts(body, count, tensors)}[mode]()
    mask = (mask + [0] * n)[:n]
    assert sum(mask) == count
    order = iter(signs)
    return [m * (1 - 2 * (signs[i] if mode == 4 else next(order))) if m else 0
            for i, m in enumerate(mask)]


def safetensors(data):
    """Tensors as {name: (dtype, shape, bytes)}, the metadata, and where the tensors begin."""
    size = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:size])
    metadata = header.pop("__metadata__", {})
    return {name: (t["dtype"], t["shape"], data[size:][slice(*t["data_offsets"])])
            for name, t in header.items()}, metadata, size


FORMATS = {"F32": "f", "F16": "e", "F64": "d"}


def floats(dtype, data):
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
        dtype = "F32"
    return [x[0] for x in struct.iter_unpack("<" + FORMATS[dtype], data)]


def rounded(dtype, values):
    """To float32, and from there to `dtype`."""
    data = struct.pack(f"<{len(values)}f", *values)
    if dtype == "BF16":
        words = [x[0] for x in struct.iter_unpack("<I", data)]
        return b"".join(struct.pack("<H", (x + 0x7FFF + (x >> 16 & 1)) >> 16) for x in words)
    return struct.pack(f"<{len(values)}{FORMATS[dtype]}", *floats("F32", data))


def tensor_rows(shape):
    """(entries, columns of a row) of a tensor, unless it is empty."""
    numel = 1
    for extent in shape:
        numel *= extent
    return [(numel, numel // shape[0] if len(shape) > 1 else numel)] if numel else []


def rows_between(tensors, begin, end):
    found, at = [], 0
    for numel, width in tensors:
        first, last = max(begin, at), min(end, at + numel)
        if first < last:
            found.append((last - first, width, (first - at) % width))
        at += numel
    return found


def read(path, base=None):
    """{name: (dtype, shape, bytes)} of what was packed; `base`: bytes of the file it refers to."""
    with open(path, "rb") as file:
        data = file.read()
    tensors, metadata, begin = safetensors(data)
    assert metadata["format"] == "compeft" and metadata["version"] in "12"
    directory, blocks = tensors["compeft.directory"][2], tensors["compeft.blocks"][2]
    head, whole = struct.unpack("<II", tensors["compeft.seal"][2])
    assert head == crc32c(data[:begin + len(directory)]) and whole == crc32c(data[:-4])
    manifest = json.loads(metadata["manifest"])
    whole_rows = [row for tensor in manifest["tensors"] if tensor["storage"] == "ternary"
                  for row in tensor_rows(tensor["shape"])]
    trits, at = [], 0
    for length, crc in struct.iter_unpack("<II", directory):
        assert crc32c(blocks[at:at + length]) == crc
        n = min(262144, manifest["numel"] - len(trits))
        trits += block(blocks[at:at + length], n,
                       rows_between(whole_rows, len(trits), len(trits) + n))
        at += length
    assert at == len(blocks) and len(trits) == manifest["numel"]
    found, entry = {}, 0
    for tensor in manifest["tensors"]:
        name, dtype, shape = tensor["name"], tensor["dtype"], tensor["shape"]
        if tensor["storage"] == "value":
            found[name] = (dtype, shape, tensors[name][2])
            continue
        if tensor["storage"] == "ternary":
            numel = 1
            for extent in shape:
                numel *= extent
            scale = manifest["parts"][tensor["part"]]["scale"]
            delta = [scale * trit for trit in trits[entry:entry + numel]]
            entry += numel
        else:
            delta = floats("F32", tensors[name][2])
        start = [tensor["base"]] * len(delta)
        if manifest["base_fingerprint"]:
            start = floats(dtype, safetensors(base)[0][name][2])
        found[name] = (dtype, shape, rounded(dtype, [b + d for b, d in zip(start, delta)]))
    return found
