"""Settings of the model card."""

from pipeline.settings import Settings


class CardSettings(Settings):
    """Statements of the model card that cannot be measured, in Markdown; HTML in them is shown as text. For
    null, the card says that it is not provided."""

    name: str | None = None
    """Title of the card; null composes one from architecture, width, size and data."""
    developers: str | None = None
    """People or organisation that made the model."""
    funded_by: str | None = None
    """People or organisation that paid for the model."""
    shared_by: str | None = None
    """People or organisation that publishes the model."""
    license: str | None = None
    """Licence of the weights, as an SPDX identifier."""
    language: str | None = None
    """Language of the class names, as an ISO 639 code."""
    repository: str | None = None
    """Address of the code that made the model."""
    demo: str | None = None
    """Address of a demo."""
    contact: str | None = None
    """Address for questions."""
    direct_use: str | None = None
    """Purpose of the model as it is."""
    downstream_use: str | None = None
    """Products and further trainings that the model is meant for."""
    out_of_scope_use: str | None = None
    """Uses that the model must not be put to."""
    risks: str | None = None
    """Harms and limits that no figure shows."""
    recommendations: str | None = None
    """What users should do about harms and limits."""
    cloud_provider: str | None = None
    """Provider and region of the machines that the model was trained on."""
    citation: str | None = None
    """Citation of the model, in BibTeX."""
