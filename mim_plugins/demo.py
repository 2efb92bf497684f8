"""``python -m mim_plugins.demo``, the older name of ``python -m mim_plugins demo``."""

from .apps.demo import load_images, main, prepare_data

__all__ = ["load_images", "main", "prepare_data"]

if __name__ == "__main__":
    main()
