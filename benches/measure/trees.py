"""Trees of small files as images have them, and archives of them; the same for everybody."""

import io
import random
import tarfile

from .machine import MIB


def archive_of_small_files(path, count):
    """A tar of `count` files, 100 in a directory: most of a few hundred bytes to 8 KiB, some of 64 KiB. Returns their bytes."""
    dice = random.Random(count)
    words = dice.randbytes(1 << 17)
    total = 0
    with tarfile.open(path, "w") as archive:
        for n in range(count):
            if n % 100 == 0:
                directory = tarfile.TarInfo(f"tree/{n // 100:04d}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(directory)
            file = tarfile.TarInfo(f"tree/{n // 100:04d}/{n:06d}")
            file.size = 64 << 10 if n % 50 == 0 else dice.randrange(200, 8 << 10)
            start = dice.randrange(1 << 16)
            archive.addfile(file, io.BytesIO(words[start:start + file.size]))
            total += file.size
    return total


def archive_of_large_file(path, size_mib):
    """A tar of one file that nothing compresses."""
    with tarfile.open(path, "w") as archive:
        file = tarfile.TarInfo("large")
        file.size = size_mib * MIB
        archive.addfile(file, _Noise(file.size))


class _Noise(io.RawIOBase):
    """Bytes that nothing compresses, read once."""

    def __init__(self, size):
        super().__init__()
        self.left = size
        self.block = random.Random(size).randbytes(MIB)

    def read(self, size=-1):
        """Up to a block, each with a number of its own in front: no two are equal."""
        size = min(size if size >= 0 else self.left, self.left, MIB)
        piece = self.left.to_bytes(8, "big") + self.block[8:]
        self.left -= size
        return piece[:size]
