"Figures. Importing this wing, or any module of it, gives learners, loaders and hits their methods that draw"
from magnifier.look import browse, catalogs, explain, gallery, interpret, ranked, show, training  # noqa: F401
