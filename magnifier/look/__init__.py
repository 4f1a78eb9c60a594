"Figures. Importing this package, or any of its modules, adds the drawing methods to learners, loaders and hits"
from magnifier.look import browse, catalogs, explain, gallery, interpret, ranked, show, training  # noqa: F401
