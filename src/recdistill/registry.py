"""A file in ``models/`` or ``methods/`` registers what it defines; importing the folder fills the registry."""

import importlib
import pkgutil


def import_all(package: str) -> None:
    """Import every module of a package, so that the classes in them register themselves."""
    folder = importlib.import_module(package)
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{package}.{module.name}")
