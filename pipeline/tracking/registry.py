"""The registered model: one version for each accepted variant, and an alias for the one that ships."""

import shlex
from collections.abc import Mapping, Sequence

from pipeline.tracking import client
from pipeline.tracking.client import MlflowClient, Run
from pipeline.tracking.records import CHAMPION, NOTE, VARIANT, ExportedFile, PipelineState

DESCRIPTION = 4900
"""Greatest number of characters of a version's description; MLflow's database accepts 5,000."""

HEADLINES = ("top1", "map", "latency_ms_p50", "size_bytes")
"""Metrics that become tags of a version."""


def register(
    mlflow: MlflowClient,
    name: str,
    state: PipelineState,
    variants: Sequence[ExportedFile],
    runs: Mapping[str, Run],
) -> None:
    """Register the accepted variants as versions of one model, and move the alias to the one that ships.

    Args:
        mlflow: MLflow's client.
        name: name of the registered model, which is created for the first accepted variant.
        state: names the variant that the budget selects; without one, the alias is removed.
        variants: all variants. Those that were registered before get their present verdict as a tag.
        runs: run of each variant.
    """
    accepted = [exported for exported in variants if exported.verdict == "accept"]
    models = mlflow.search_registered_models(client.equals("name", name))
    if not models and not accepted:
        return
    model = models[0] if models else mlflow.create_registered_model(name, description=_model_note(name))
    versions = {v.tags.get("sha256"): v for v in mlflow.search_model_versions(client.equals("name", name))}
    for exported in variants:
        version = versions.get(exported.artifact)
        if version is None and exported.verdict == "accept":
            run = runs[exported.run.name]
            model_id = client.model_id(mlflow, run)
            versions[exported.artifact] = mlflow.create_model_version(
                name,
                f"models:/{model_id}",
                run.info.run_id,
                tags=_version_tags(exported),
                description=_version_note(exported, state),
                model_id=model_id,
            )
        elif version is not None and version.tags.get("verdict") != exported.verdict:
            mlflow.set_model_version_tag(name, version.version, "verdict", exported.verdict)
    champion = next((versions[e.artifact] for e in accepted if e.run.name == state.champion), None)
    holder = {alias.lower(): number for alias, number in model.aliases.items()}.get(CHAMPION)
    if champion is None and holder is not None:
        mlflow.delete_registered_model_alias(name, CHAMPION)
    elif champion is not None and str(holder) != str(champion.version):
        mlflow.set_registered_model_alias(name, CHAMPION, champion.version)


def _version_tags(exported: ExportedFile) -> dict[str, str]:
    headlines = {key: str(round(value, 6)) for key, value in exported.metrics.items() if key in HEADLINES}
    return {
        **exported.tags,
        **headlines,
        VARIANT: exported.run.name,
        "verdict": exported.verdict,
        "sha256": exported.artifact,
    }


def _version_note(exported: ExportedFile, state: PipelineState) -> str:
    """The variant's note and as much of the model card as MLflow accepts."""
    note = exported.tags[NOTE]
    if state.card is None:
        return note
    text = f"{note}\n\n{state.card}"
    if len(text) <= DESCRIPTION:
        return text
    end = text.rindex("\n", 0, DESCRIPTION)
    return f"{text[:end]}\n\nThe rest of the card is in `report/` of the parent run."


def _model_note(name: str) -> str:
    address = shlex.quote(f"models:/{name}@{CHAMPION}")
    return (
        "The variants that the gate accepts, one version each. The alias `champion` marks the variant that "
        "the budget selects. To serve it:\n\n"
        f"    mlflow models serve -m {address} --env-manager local -p 5001\n"
        "    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
        "-d '{\"inputs\": [\"'$(base64 -w0 photo.jpg)'\"]}'\n"
    )
