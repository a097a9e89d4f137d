"""The registered models, one per data set: a version for each accepted variant, and an alias for the best.

Scores on different data cannot be compared, so that no data set has a say in the champion of another one.
Each champion has an address of its own, such as ``models:/distillery-fashion-mnist@champion``, and all of
them can be served at the same time.
"""

import shlex
from collections.abc import Mapping, Sequence

from pipeline.escaping import code
from pipeline.tracking import client
from pipeline.tracking.client import MlflowClient, Run
from pipeline.tracking.records import CHAMPION, DATASET, DIGEST, NOTE, VARIANT, ExportedFile, PipelineState

DESCRIPTION = 4900
"""Greatest number of characters of a version's description; MLflow's database accepts 5,000."""


def register(
    mlflow: MlflowClient,
    base: str,
    state: PipelineState,
    variants: Sequence[ExportedFile],
    runs: Mapping[str, Run],
) -> str:
    """Register the accepted variants as versions of one model, and move the alias to the one that ships.

    Args:
        mlflow: MLflow's client.
        base: beginning of the name of the registered model, which is created for the first accepted variant.
        state: names the variant that the budget selects; without one, the alias is removed.
        variants: all variants. Those that were registered before get their present verdict and figures.
        runs: run of each variant.

    Returns:
        The name of the registered model of the state's data set, whether it exists or not.
    """
    name = _name(mlflow, base, state)
    models = mlflow.search_registered_models(client.equals("name", name))
    if not models and not any(exported.accepted for exported in variants):
        return name
    if models:
        model = models[0]
    else:
        data = {DATASET: state.data_id, DIGEST: state.data["data_sha256"]}
        model = mlflow.create_registered_model(name, data, _model_note(name, state))
    versions = {v.tags.get("sha256"): v for v in mlflow.search_model_versions(client.equals("name", name))}
    for exported in variants:
        tags, note = _version_tags(exported, state), _version_note(exported)
        version = versions.get(exported.artifact)
        if version is None and exported.accepted:
            run = runs[exported.run.name]
            model_id = client.model_id(mlflow, run)
            versions[exported.artifact] = mlflow.create_model_version(
                name, f"models:/{model_id}", run.info.run_id, tags=tags, description=note, model_id=model_id
            )
        elif version is not None:
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    mlflow.set_model_version_tag(name, version.version, key, value)
            if version.description != note:
                mlflow.update_model_version(name, version.version, note)
    champion = next(
        (versions[e.artifact] for e in variants if e.accepted and e.run.name == state.champion), None
    )
    holder = {alias.lower(): number for alias, number in model.aliases.items()}.get(CHAMPION)
    if champion is None and holder is not None:
        mlflow.delete_registered_model_alias(name, CHAMPION)
    elif champion is not None and str(holder) != str(champion.version):
        mlflow.set_registered_model_alias(name, CHAMPION, champion.version)
    return name


def _name(mlflow: MlflowClient, base: str, state: PipelineState) -> str:
    """The name of the model of a data set, with its digest if other data of this name were there first."""
    plain, digest = f"{base}-{state.data_slug}", state.data["data_sha256"]
    models = mlflow.search_registered_models(client.equals("name", plain))
    if not models or models[0].tags.get(DIGEST) == digest:
        return plain
    return f"{plain}-{digest[:8]}"


def _version_tags(exported: ExportedFile, state: PipelineState) -> dict[str, str]:
    return {
        **exported.summary,
        VARIANT: exported.run.name,
        "verdict": "accept" if exported.accepted else "reject",
        "sha256": exported.artifact,
        DATASET: state.data_id,
        DIGEST: state.data["data_sha256"],
        "teacher": state.tags["teacher"],
        "budget": state.budget,
    }


def _version_note(exported: ExportedFile) -> str:
    """The variant's note and as much of its model card as MLflow accepts."""
    note = exported.tags[NOTE]
    if exported.card is None:
        return note
    text = f"{note}\n\n{exported.card}"
    if len(text) <= DESCRIPTION:
        return text
    end = text.rindex("\n", 0, DESCRIPTION)
    return f"{text[:end]}\n\nThe rest of the card is `model_card.md` of the run."


def _model_note(name: str, state: PipelineState) -> str:
    address = shlex.quote(f"models:/{name}@{CHAMPION}")
    return (
        f"Image classifiers for the data set {code(state.data_id)}: one version for each variant that "
        "the gate accepts together with everything that it was made from. The alias `champion` marks the "
        "variant that the budget selects. To serve it:\n\n"
        f"    mlflow models serve -m {address} --env-manager local -p 5001\n"
        "    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
        "-d '{\"inputs\": [\"'$(base64 -w0 photo.jpg)'\"]}'\n"
    )
