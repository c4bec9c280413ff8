"""A trained model with Hugging Face's from_pretrained, save_pretrained and push_to_hub. Needs huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, PyTorchModelHubMixin
from pydantic import TypeAdapter
from torch import Tensor, nn

from vitlab import config
from vitlab.errors import UserError
from vitlab.export import library
from vitlab.models import registry
from vitlab.records import DatasetFacts


class Model(nn.Module, PyTorchModelHubMixin):
    """A classifier: normalised float32 images (B, 3, 32, 32) -> logits (B, classes).

    `Model.from_pretrained(folder)` loads an exported folder, or a repository on the Hub by its name. `transform` turns a Pillow image into
    what the model takes; `classes` names the logits.
    """

    def __init__(self, model: dict[str, Any], classes: list[str], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = registry.build(TypeAdapter(config.Model).validate_python(model), len(classes))
        self.transform = library.Transform(tuple(mean), tuple(std))
        library.describe(self, tuple(classes), self.transform)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def save(trained: nn.Module, model: dict[str, Any], data: DatasetFacts, folder: Path) -> None:
    """Write config.json and model.safetensors of the `trained` model, whose section of the configuration is `model`, into `folder`.

    A README.md must be there already, or one is made.
    """
    wrapped = Model(model=model, classes=list(data.classes), mean=list(data.mean), std=list(data.std))
    wrapped.net.load_state_dict(trained.state_dict())
    wrapped.save_pretrained(folder)


def push(folder: Path, repository: str) -> str:
    """Upload the folder to the Hub's repository `user/name`, made where it is missing, and return its address.

    Raises UserError where there is no network, no token, or no right to write there.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="vitlab export")
    except Exception as e:  # the client lets those of its HTTP library through, which is another from version to version
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{repository}: not pushed ({reason}); the folder {folder} is whole. This needs a network and a token that may write: "
            "'hf auth login', then the same command again"
        ) from None
    return str(address)
