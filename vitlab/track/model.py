"""The model in MLflow: logged with a signature, loadable without this package."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitlab import records
from vitlab.records import RunRecord
from vitlab.track.store import Store, connect

if TYPE_CHECKING:
    from torch import nn


def log_model(root: Path, run_id: str, model: nn.Module, example: np.ndarray) -> str:
    """Log `model` under the run and return the logged model's id.

    It loads as `models:/<id>` without this package: a graph exported by torch, not a pickle.

    example: (2, 3, H, W), uint8 or float; two images, since a batch of one would be exported as a constant. The graph takes what the model
    takes: normalised float32 images, any number of them. Where the run has a model already, its id is returned. Raises what mlflow raises.
    """
    from mlflow.entities import LoggedModelStatus

    store = connect(root)
    for earlier in store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'"):
        if earlier.status == LoggedModelStatus.READY:  # logged, but a kill came before its id was noted
            link(store, earlier.model_id, run_id)
            return earlier.model_id
        store.client.delete_logged_model(earlier.model_id)
    model_id = _log(store, store.client.get_run(run_id).data.tags["vitlab.experiment"], model, example, run_id=run_id)
    link(store, model_id, run_id)
    return model_id


def log_alone(root: Path, record: RunRecord, weights: bytes, model: nn.Module, example: np.ndarray) -> str:
    """Log a model whose run is not in this store, with its record and its `weights`, safetensors, beside it; return the logged model's id.

    The other arguments, and what is raised, are as `log_model` has them. A model that is there already is not logged again.
    """
    from mlflow.entities import LoggedModelStatus

    store, mark = connect(root), f"{record.fingerprint}-s{record.seed} {record.finished} {hashlib.sha256(weights).hexdigest()[:16]}"
    for earlier in store.client.search_logged_models([store.experiment_id]):
        if earlier.tags.get("vitlab.alone") == mark and earlier.status == LoggedModelStatus.READY:
            return earlier.model_id
    with tempfile.TemporaryDirectory() as tmp:
        records.write(record, Path(tmp) / "record.json")
        (Path(tmp) / "weights.safetensors").write_bytes(weights)
        return _log(store, record.experiment, model, example, beside=Path(tmp), tags={"vitlab.alone": mark})


def _log(
    store: Store, name: str, model: nn.Module, example: np.ndarray, run_id: str | None = None,
    beside: Path | None = None, tags: dict[str, str] | None = None,
) -> str:  # fmt: skip
    """Log the model, and the files of the folder `beside` with it; return the logged model's id."""
    import copy

    import mlflow.pytorch
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()  # torch.export warns of channels_last weights
    images = np.ascontiguousarray(example / 255 if example.dtype == np.uint8 else example, dtype=np.float32)
    float32 = np.dtype(np.float32)
    name = re.sub(r"[/:.%\"']", "_", name)  # characters that MLflow refuses in a model's name
    logged = store.client.create_logged_model(store.experiment_id, name=name, source_run_id=run_id, tags=tags)
    status = "FAILED"
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as tmp:
            classes = model(torch.from_numpy(images)).shape[1]
            inputs, outputs = TensorSpec(float32, (-1, *images.shape[1:])), TensorSpec(float32, (-1, classes))
            mlflow.pytorch.save_model(
                model,
                f"{tmp}/model",
                mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
                signature=ModelSignature(Schema([inputs]), Schema([outputs])),
                input_example=images,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],  # or they are inferred, slowly
                serialization_format="pt2",
            )
            store.client.log_model_artifacts(logged.model_id, f"{tmp}/model")
            if beside is not None:
                store.client.log_model_artifacts(logged.model_id, str(beside))
        status = "READY"
    finally:
        store.client.finalize_logged_model(logged.model_id, status)
    return logged.model_id


def link(store: Store, model_id: str, run_id: str) -> None:
    """Make the model an output of the run, unless it is one already."""
    from mlflow.entities import LoggedModelOutput

    if all(output.model_id != model_id for output in store.client.get_run(run_id).outputs.model_outputs):
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
