"""Plugins for Hugging Face transformers: :func:`wrap` for its masked image models.

``python -m mim_plugins.transformers --help`` runs transformers' own training scripts with them.
"""

from .._versions import check_versions

try:
    import transformers
except ImportError as error:
    raise ImportError(
        f"mim_plugins.transformers needs transformers ({error}): "
        "pip install 'mim_plugins[transformers]'"
    ) from error
else:
    check_versions(transformers, extra="transformers")

from .wrap import wrap

__all__ = ["wrap"]
