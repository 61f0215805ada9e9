"""A bucket in memory, in the place of the one that `gs://` names."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem


class _Bucket(MemoryFileSystem):
    protocol = ("gcs", "gs")
    store: dict = {}
    pseudo_dirs: list = [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").strip("/")


@contextmanager
def memory_store() -> Iterator[epath.Path]:
    """`gs://bucket`, empty at first."""
    _Bucket.store, _Bucket.pseudo_dirs = {}, [""]
    before = dict(fsspec.registry)
    for name in _Bucket.protocol:
        fsspec.register_implementation(name, _Bucket, clobber=True)
    _Bucket().mkdir("gs://bucket")
    try:
        yield epath.Path("gs://bucket")
    finally:
        for name in _Bucket.protocol:
            fsspec.register_implementation(
                name, before.get(name, "gcsfs.GCSFileSystem"), clobber=True
            )
