"""vitlab: a CIFAR-10 ablation suite, from a plain ViT to distillation into class attention, that says how sure it is."""

__version__ = "0.1.0"
