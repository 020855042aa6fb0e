"""Object stores through fsspec: the folder of a bucket that the user names, and what lies in it."""

from typing import Any

from xgenvideo.errors import ConfigError, DataError, MissingExtra

# The package that reads each, as fsspec has it; https goes through curate.download, which checks hosts and addresses.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
REFUSED = ("http", "https", "ftp", "sftp", "ssh", "reference")


def is_url(text: object) -> bool:
    """Whether this names an object store and no local path."""
    return isinstance(text, str) and "://" in text


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a URL such as s3://bucket/folder, and the path in it. Raises ConfigError, MissingExtra."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtra("fsspec", "remote") from error
    protocol = url.partition("://")[0]
    if protocol in REFUSED or "::" in url:
        raise ConfigError(
            "--videos", url, "is no object store; give a local folder, or a URL such as s3://bucket/folder"
        )
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(PACKAGES.get(protocol, protocol), "remote") from error
    except ValueError as error:
        rule = "is of a kind that fsspec does not know; give a local folder, or a URL such as s3://bucket/folder"
        raise ConfigError("--videos", url, rule) from error
    return files, str(path)


def names_in(url: str, suffixes: tuple[str, ...]) -> frozenset[str]:
    """Names of the objects below a folder with one of the suffixes, listed once. Raises DataError."""
    files, path = open_store(url)
    root = path.rstrip("/") + "/"
    try:
        if not files.isdir(path):
            raise DataError(
                f"{url}: is no folder of that store, or may not be read; give the one that holds the videos"
            )
        found = files.find(path)
    except OSError as error:
        raise DataError(f"{url}: cannot be listed ({type(error).__name__}: {error})") from error
    return frozenset(name.removeprefix(root) for name in found if name.startswith(root) and name.endswith(suffixes))
