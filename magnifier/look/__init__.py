"Figures. Importing this package, or any of its modules, adds the drawing methods to learners, loaders and hits"
from magnifier.look import explain, gallery, graphs, interpret, ranked, show  # noqa: F401
