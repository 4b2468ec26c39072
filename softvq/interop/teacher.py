"""Vision transformers as transformers saves them, opened: DINOv2, DINOv3, CLIP, SigLIP, MAE.."""

from pathlib import Path

from safetensors import SafetensorError

from softvq.errors import UserError
from softvq.tokenizer.alignment import Teacher


def open_teacher(name: str | Path, download: bool = False) -> Teacher:
    """Open a local directory, or with ``download`` a model of the hub. Raises UserError."""
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError:
        raise UserError(f"{name}: needs transformers: pip install 'softvq[align]'") from None
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=not download)
        if config.model_type == "vit_mae":
            config.mask_ratio = 0.0
        model = AutoModel.from_pretrained(
            name, config=config, local_files_only=not download, use_safetensors=True
        )
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(
                name, local_files_only=not download
            )
        except OSError:  # the directory holds the model alone
            settings = {}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        mend = "; give its local directory, or alignment.download=true"
        raise UserError(
            f"{name}: not a vision model that transformers opens"
            f"{'' if Path(name).is_dir() else mend} ({str(error).splitlines()[0]})"
        ) from None
    model = getattr(model, "vision_model", model)  # the image half of CLIP and SigLIP
    if not isinstance(getattr(model.config, "patch_size", None), int) or not hasattr(
        model.config, "image_size"
    ):
        raise UserError(
            f"{name}: a {config.model_type} has no fixed grid of patches; "
            "give a vision transformer such as DINOv2"
        )
    size = settings.get("crop_size") or settings.get("size") or model.config.image_size
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    mean = settings.get("image_mean") or [0.485, 0.456, 0.406]  # ImageNet's
    return Teacher(model, size, mean, settings.get("image_std") or [0.229, 0.224, 0.225])
