"""Plugins for Hugging Face transformers: :func:`wrap` for its masked image models.

``python -m mim_plugins.transformers --help`` runs transformers' own training scripts with them.
"""

from .._versions import check_versions, importing

with importing("mim_plugins.transformers needs transformers", "transformers"):
    import transformers
check_versions(transformers, extra="transformers")

from .wrap import wrap

__all__ = ["wrap"]
