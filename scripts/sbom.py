"""Writes which crates are in the binary: an SBOM (CycloneDX 1.5) and the texts of their licences.

sbom.py METADATA SBOM LICENCES TARGET, where METADATA is what `cargo metadata --filter-platform TARGET` prints. Crates that only
tests or builds use are left out. Rust's standard library is in every binary, and musl in a static one.
"""

import datetime
import json
import os
import pathlib
import re
import sys

NAMES = re.compile(r"(?i)^(licen[sc]e|copying|notice|unlicense|copyright)([-._].*)?$")


MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software
is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES
OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE
LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR
IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def libraries(target):
    """What is linked that is no crate: name, licence, copyright."""
    found = [("rust-std", "MIT OR Apache-2.0", "Copyright (c) The Rust Project Contributors")]
    if target.endswith("-musl"):
        found.append(("musl", "MIT", "Copyright (c) 2005-2020 Rich Felker, et al."))
    return found


def linked(metadata):
    """The packages that are reached from ours by ordinary dependencies, without ours."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    found, waiting = set(), [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            ordinary = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if ordinary and dependency["pkg"] not in found:
                found.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    packages = [package for package in metadata["packages"] if package["id"] in found]
    return root, sorted(packages, key=lambda package: (package["name"], package["version"]))


def component(package):
    described = {
        "type": "library",
        "bom-ref": f"pkg:cargo/{package['name']}@{package['version']}",
        "name": package["name"],
        "version": package["version"],
        "purl": f"pkg:cargo/{package['name']}@{package['version']}",
    }
    if package["license"]:
        # "MIT/Apache-2.0" is an old way to write OR.
        described["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if package["repository"]:
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    return [path for path in sorted(folder.iterdir()) if NAMES.match(path.name) and path.is_file()]


def main():
    metadata = json.loads(pathlib.Path(sys.argv[1]).read_text())
    root, packages = linked(metadata)
    ours = next(package for package in metadata["packages"] if package["id"] == root)
    at = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    sbom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {**component(ours), "type": "application"},
        },
        "components": [component(package) for package in packages]
        + [
            {"type": "library", "bom-ref": name, "name": name, "licenses": [{"expression": licence}]}
            for name, licence, _ in libraries(sys.argv[4])
        ],
    }
    pathlib.Path(sys.argv[2]).write_text(json.dumps(sbom, indent=1) + "\n")
    with open(sys.argv[3], "w", encoding="utf-8") as out:
        out.write("walhook is linked with these crates. Each is named with its licence and its own texts.\n")
        first = {}
        for package in packages:
            name = f"{package['name']} {package['version']}"
            out.write(f"\n{'=' * 79}\n{name}: {package['license'] or 'see its text'}\n")
            for path in texts(package):
                text = path.read_text(encoding="utf-8", errors="replace").strip()
                known = first.setdefault(text, f"{path.name} of {name}")
                same = known != f"{path.name} of {name}"
                out.write(f"\n--- {path.name}{': the same as ' + known if same else chr(10) * 2 + text}\n")
        for name, licence, copyright_of in libraries(sys.argv[4]):
            out.write(f"\n{'=' * 79}\n{name}: {licence}\n\n{copyright_of}\n\n{MIT}\n")


main()
