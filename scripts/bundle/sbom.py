# SPDX-License-Identifier: Apache-2.0
"""The bundle's CycloneDX SBOM, with the series in the pedigree of its vLLM; runs in build/bundle.

    python -m bundle.sbom < FACTS.json > sbom.cdx.json

FACTS is what `bundle.pack` knows. The same facts give the same bytes: the serial number is made
from them, and the time is the series'.
"""

import datetime
import json
import sys
import uuid
from typing import Any

from cyclonedx.model import AttachedText, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import (
    Component,
    ComponentType,
    Diff,
    Patch,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.issue import IssueClassification, IssueType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def sha256(value: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=value)]


def package(name: str, version: str, hashed: str, **more: Any) -> Component:
    """A component of the package index: a wheel, or a source archive."""
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"{name}@{version}",
        hashes=sha256(hashed),
        purl=PackageURL("pypi", name=name, version=version),
        **more,
    )


def patch(row: dict[str, str]) -> Patch:
    """A patch with its diff and what it resolves."""
    fixes = row["subject"].startswith("[Bugfix]")
    issue = IssueType(
        type=IssueClassification.DEFECT if fixes else IssueClassification.ENHANCEMENT,
        id=row["name"],
        name=row["subject"],
        description=row["problem"] or None,
        references=[XsUri(row["url"])] if row["url"] else None,
    )
    text = AttachedText(content=row["diff"], content_type="text/x-diff")
    diff = Diff(text=text, url=XsUri(row["file"]))
    return Patch(type=PatchClassification.UNOFFICIAL, diff=diff, resolves=[issue])


def bom(facts: dict[str, Any]) -> Bom:
    """The whole bill: the bundle, its vLLM with a pedigree, and each wheel beside it."""
    name, upstream = facts["package"], facts["upstream"]
    # What pip would call it is not on the index, so its purl names the file.
    own = Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=facts["version"],
        bom_ref=f"{name}@{facts['version']}",
        hashes=sha256(facts["wheel"]["sha256"]),
        purl=PackageURL(
            "pypi",
            name=name,
            version=facts["version"],
            qualifiers={"file_name": facts["wheel"]["file"]},
        ),
        pedigree=Pedigree(
            ancestors=[package(name, upstream["version"], upstream["sha256"])],
            patches=[patch(row) for row in facts["patches"]],
            notes=f"{len(facts['patches'])} patches, in the order of "
            f"patches/{facts['base']}/series; git tree {facts['tree']}",
        ),
    )
    others = [
        package(
            row["name"],
            row["version"],
            row["sha256"],
            properties=[Property(name="exaone45:file", value=f"wheels/{row['file']}")],
        )
        for row in facts["packages"]
    ]
    root = Component(
        type=ComponentType.APPLICATION,
        name=facts["name"],
        version=facts["version"],
        bom_ref=facts["name"],
    )
    found = Bom(
        components=[own, *others],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(facts, sort_keys=True)),
        metadata=BomMetaData(
            component=root,
            timestamp=datetime.datetime.fromtimestamp(facts["date"], datetime.timezone.utc),
        ),
    )
    found.register_dependency(root, [own, *others])
    return found


def check(text: str) -> str:
    """What the schema of CycloneDX 1.6 finds wrong with an SBOM; '' if nothing."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return str(error.data) if error else ""


def run(given: str) -> str:
    """The SBOM of facts in JSON; a ValueError if it is not valid."""
    text: str = JsonV1Dot6(bom(json.loads(given))).output_as_string(indent=1)
    if wrong := check(text):
        raise ValueError(f"the SBOM is not CycloneDX 1.6: {wrong}")
    return text + "\n"


if __name__ == "__main__":
    try:
        sys.stdout.write(run(sys.stdin.read()))
    except ValueError as error:
        sys.exit(str(error))
