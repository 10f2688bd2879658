"""Files as `torch.save` writes them, made without PyTorch: the instructions of their pickles, written by hand."""

import io
import struct
import zipfile

import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "b1": "Bool"}


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def storage(key, kind, size, *, old=False):
    fields = text("storage") + name("torch", f"{kind}Storage") + text(key) + text("cpu") + number(size)
    return b"(" + fields + (b"N" if old else b"") + b"tQ"


def tensor(key, shape, strides, *, kind="Float", size, offset=0, old=False):
    place = storage(key, kind, size, old=old) + number(offset) + numbers(shape) + numbers(strides)
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + place + b"\x89" + hooks + b"tR"


def mapping(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def old_file(body, storages):
    """The layout before PyTorch 1.6; `storages` are arrays by key."""
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    machine = mapping({"protocol_version": number(1001), "little_endian": b"\x88"})
    pickles = [number(1001), machine, body, b"](" + b"".join(map(text, storages)) + b"e"]
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return magic + b"".join(b"\x80\x02" + pickle + b"." for pickle in pickles) + data


def zip_file(body, storages, order="little"):
    """The layout since then."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return buffer.getvalue()


def saved(arrays, *, old=False, **more):
    """A state dict of arrays, and further values as pickled bytes."""
    body, storages = {}, {}
    for place, (key, array) in enumerate(arrays.items()):
        array = np.ascontiguousarray(array)
        strides = [stride // array.itemsize for stride in array.strides]
        kind = KINDS[array.dtype.str[1:]]
        body[key] = tensor(str(place), array.shape, strides, kind=kind, size=array.size, old=old)
        storages[str(place)] = array
    return (old_file if old else zip_file)(mapping(body | more), storages)
