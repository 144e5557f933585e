#!/usr/bin/env python3
"""Makes multi-arch stand-ins for busybox, alpine and golang:alpine and pushes them to a registry.

For machines that cannot reach Docker Hub. Everything comes from Debian packages that the caller has
downloaded; no foreign instruction is ever executed: files are copied from the packages into layers,
and configs, manifests and indexes are written here.

Packages are expected as PACKAGES/<debian arch>/<name>_*.deb.
"""

import argparse
import concurrent.futures
import dataclasses
import glob
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EPOCH = "2023-06-10T00:00:00Z"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# (Debian architecture, OCI platform). Debian's armel runs on every ARMv6 and armhf needs ARMv7.
PLATFORMS = [
    ("amd64", {"architecture": "amd64", "os": "linux"}),
    ("arm64", {"architecture": "arm64", "os": "linux", "variant": "v8"}),
    ("armhf", {"architecture": "arm", "os": "linux", "variant": "v7"}),
    ("armel", {"architecture": "arm", "os": "linux", "variant": "v6"}),
]

# What `go build` of a program needs. The rest of the toolchain is three quarters of its size, and
# every engine of a test bed unpacks it once per platform.
GO_TOOLS = {"asm", "buildid", "cgo", "compile", "link", "pack"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", required=True, help="folder with one sub-folder of .deb files per architecture")
    parser.add_argument("--busybox", required=True, help="a busybox of this machine's architecture, asked for its applets")
    parser.add_argument("--registry", required=True, help="HOST:PORT, reached over plain http")
    args = parser.parse_args()

    registry = Registry(args.registry)
    applets = subprocess.run([args.busybox, "--list-full"], check=True, capture_output=True, text=True).stdout.split()
    go_source = Layer.build("the Go standard library's source", lambda tar: add_go_source(tar, args.packages))
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        builds = [pool.submit(platform_images, args.packages, arch, platform, applets, go_source) for arch, platform in PLATFORMS]
        per_platform = [build.result() for build in builds]

    for name, tag in [("busybox", "latest"), ("alpine", "latest"), ("golang", "alpine")]:
        children = [images[name] for images in per_platform]
        digest = registry.push_index(f"library/{name}", tag, children)
        print(f"{name}:{tag} {digest}", flush=True)


@dataclasses.dataclass
class Layer:
    """One gzip layer: its blob, and the digests of the blob and of the tar inside."""

    blob: bytes
    digest: str
    diff_id: str
    comment: str

    @staticmethod
    def build(comment, fill):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            fill(tar)
        data = raw.getvalue()
        # The mtime of zero keeps the digest the same from run to run.
        blob = gzip.compress(data, compresslevel=1, mtime=0)
        return Layer(blob, sha256(blob), sha256(data), comment)


@dataclasses.dataclass
class Image:
    """One platform's child of an index."""

    platform: dict
    layers: list
    env: list
    cmd: list
    workdir: str

    def config(self):
        return encode({
            **self.platform,
            "created": EPOCH,
            "author": "Kiln: a stand-in made from Debian packages",
            "config": {"Env": self.env, "Cmd": self.cmd, "WorkingDir": self.workdir},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            "history": [{"created": EPOCH, "created_by": layer.comment} for layer in self.layers],
        })

    def manifest(self):
        return encode({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, self.config()),
            "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": len(layer.blob)} for layer in self.layers],
        })


def platform_images(packages, arch, platform, applets, go_source):
    """The three images of one platform, by name."""
    base = Layer.build(f"busybox of Debian {arch}", lambda tar: add_busybox(tar, packages, arch, applets))
    marker = Layer.build("marks this image as a stand-in", add_marker)
    go = Layer.build(f"Go of Debian {arch}", lambda tar: add_go(tar, packages, arch))
    env = [f"PATH={PATH}"]
    go_env = [f"PATH=/go/bin:/usr/lib/go/bin:{PATH}", "GOPATH=/go", "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false"]
    return {
        "busybox": Image(platform, [base], env, ["sh"], "/"),
        "alpine": Image(platform, [base, marker], env, ["/bin/sh"], "/"),
        # The source comes first: the same bottom layer for every platform is stored and unpacked once.
        "golang": Image(platform, [go_source, base, marker, go], go_env, ["/bin/sh"], "/go"),
    }


def add_busybox(tar, packages, arch, applets):
    for path, mode in [("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755), ("usr/lib", 0o755), ("usr/lib64", 0o755), ("etc", 0o755), ("tmp", 0o1777),
                       ("root", 0o700), ("var", 0o755), ("run", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("home", 0o755)]:
        add_directory(tar, path, mode)
    for link in ["bin", "sbin", "lib", "lib64"]:
        add_link(tar, link, f"usr/{link}")
    add_text(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    add_text(tar, "etc/group", "root:x:0:\nnobody:x:65534:\n")
    copy_package(tar, package(packages, arch, "busybox-static"), lambda path: path == "usr/bin/busybox")
    for applet in applets:
        folder = "usr/sbin" if "sbin/" in applet else "usr/bin"
        name = applet.rsplit("/", 1)[-1]
        if name != "busybox":
            add_link(tar, f"{folder}/{name}", "/usr/bin/busybox")


def add_marker(tar):
    add_text(tar, "etc/alpine-release", "stand-in\n")
    add_text(tar, "etc/os-release", 'ID=alpine-stand-in\nPRETTY_NAME="Stand-in for Alpine Linux made by Kiln from Debian packages"\n')


def add_go_source(tar, packages):
    def wanted(path):
        return (path.startswith("usr/share/go") and "/src/" in path and "/src/cmd/" not in path
                and "/testdata" not in path and not path.endswith("_test.go"))

    copy_package(tar, package(packages, "amd64", "golang-*-src"), wanted)


def add_go(tar, packages, arch):
    def wanted(path):
        if "/share/doc/" in path or "/share/man/" in path or path.endswith("/gofmt"):
            return False
        if match := re.search(r"/pkg/tool/[^/]+/([^/]+)$", path):
            return match.group(1) in GO_TOOLS
        # Compiled packages of the toolchain itself, as opposed to the standard library.
        return not re.search(r"/pkg/[^/]+/cmd(/|\.a$|$)", path)

    copy_package(tar, package(packages, arch, "libc6"), lambda path: "/share/" not in path and "/gconv/" not in path)
    copy_package(tar, package(packages, arch, "golang-1*-go"), wanted)
    copy_package(tar, package(packages, arch, "golang-go"), wanted)
    add_directory(tar, "go", 0o777)


def package(packages, arch, name):
    found = glob.glob(f"{packages}/{arch}/{name}_*.deb")
    if len(found) != 1:
        sys.exit(f"expected one package {name} for {arch} in {packages}/{arch}, found {len(found)}")
    return found[0]


def copy_package(tar, deb, wanted):
    """Copies a package's wanted files, with /bin, /lib and /sbin moved under /usr as in a merged-usr Debian."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as source:
            for member in source:
                path = merged_usr(member.name.removeprefix("./").strip("/"))
                if member.isdir() or not path or not wanted(path):
                    continue
                member.name = path
                member.uname = member.gname = ""
                if member.islnk():
                    member.linkname = merged_usr(member.linkname.removeprefix("./"))
                tar.addfile(member, source.extractfile(member) if member.isreg() else None)
    if process.returncode != 0:
        sys.exit(f"dpkg-deb could not read {deb}")


def merged_usr(path):
    return re.sub(r"^(bin|sbin|lib|lib32|lib64)(?=/)", r"usr/\1", path)


def add_directory(tar, path, mode):
    info = tarfile.TarInfo(path)
    info.type, info.mode = tarfile.DIRTYPE, mode
    tar.addfile(info)


def add_link(tar, path, target):
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    tar.addfile(info)


def add_text(tar, path, text):
    data = text.encode()
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


class Registry:
    """The few calls of the OCI distribution API that a push needs."""

    def __init__(self, address):
        self.base = f"http://{address}"

    def push_index(self, repository, tag, images):
        descriptors = []
        for image in images:
            for layer in image.layers:
                self.push_blob(repository, layer.digest, layer.blob)
            config, manifest = image.config(), image.manifest()
            self.push_blob(repository, sha256(config), config)
            self.push_manifest(repository, sha256(manifest), MANIFEST, manifest)
            descriptors.append({**descriptor(MANIFEST, manifest), "platform": image.platform})
        index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors})
        self.push_manifest(repository, tag, INDEX, index)
        return sha256(index)

    def push_blob(self, repository, digest, blob):
        if self.has_blob(repository, digest):
            return
        upload = self.call("POST", f"{self.base}/v2/{repository}/blobs/uploads/", b"").headers["Location"]
        upload = upload if upload.startswith("http") else self.base + upload
        separator = "&" if "?" in upload else "?"
        self.call("PUT", f"{upload}{separator}digest={digest}", blob, "application/octet-stream")

    def has_blob(self, repository, digest):
        try:
            self.call("HEAD", f"{self.base}/v2/{repository}/blobs/{digest}")
            return True
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise

    def push_manifest(self, repository, reference, media_type, body):
        self.call("PUT", f"{self.base}/v2/{repository}/manifests/{reference}", body, media_type)

    @staticmethod
    def call(method, url, body=None, content_type="application/octet-stream"):
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": content_type})
        # A proxy from the environment must not see calls to the loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as response:
            response.read()
            return response


def descriptor(media_type, data):
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def encode(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
