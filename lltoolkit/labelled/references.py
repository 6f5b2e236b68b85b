"""The papers behind the methods, as data: BibTeX entries, and which measure of sharpness is whose. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NEURIPS, ICLR, ICML = (
    "Advances in Neural Information Processing Systems",
    "International Conference on Learning Representations",
    "International Conference on Machine Learning",
)
SIAM_MATRIX = "SIAM Journal on Matrix Analysis and Applications"


@dataclass(frozen=True)
class Reference:
    """A publication.

    Attributes
    ----------
    kind : str
        Of BibTeX entry: "article", "inproceedings", "book" or "misc".
    authors : str
        As BibTeX has them, joined by "and".
    title : str
        Kept as it is written: its capitals are shielded.
    venue : str
        Conference, journal or publisher.
    year : int
        Of the publication.
    more : mapping
        Further fields.
    """

    kind: str
    authors: str
    title: str
    venue: str
    year: int
    more: Mapping[str, str] = field(default_factory=dict)

    def bibtex(self, key: str) -> str:
        """Write the entry under a key."""
        place = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}.get(self.kind, "howpublished")
        return entry(
            self.kind,
            key,
            {
                "author": self.authors,
                "title": f"{{{self.title}}}",
                place: self.venue,
                "year": str(self.year),
                **self.more,
            },
        )


def entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    """Write a BibTeX entry."""
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])


# Volumes and pages are left out, but for what is on the publisher's own page.
REFERENCES: dict[str, Reference] = {
    "li2018visualizing": Reference(
        "inproceedings",
        "Li, Hao and Xu, Zheng and Taylor, Gavin and Studer, Christoph and Goldstein, Tom",
        "Visualizing the Loss Landscape of Neural Nets",
        NEURIPS,
        2018,
        {"volume": "31"},
    ),
    "goodfellow2015qualitatively": Reference(
        "inproceedings",
        "Goodfellow, Ian J. and Vinyals, Oriol and Saxe, Andrew M.",
        "Qualitatively characterizing neural network optimization problems",
        ICLR,
        2015,
    ),
    "yao2020pyhessian": Reference(
        "inproceedings",
        "Yao, Zhewei and Gholami, Amir and Keutzer, Kurt and Mahoney, Michael W.",
        "PyHessian: Neural Networks Through the Lens of the Hessian",
        "IEEE International Conference on Big Data",
        2020,
        {"doi": "10.1109/BigData50022.2020.9378171"},
    ),
    "antognini2018pca": Reference(
        "inproceedings",
        "Antognini, Joseph M. and Sohl-Dickstein, Jascha",
        "PCA of high dimensional random walks with comparison to neural network training",
        NEURIPS,
        2018,
        {"volume": "31"},
    ),
    "wu2000thick": Reference(
        "article",
        "Wu, Kesheng and Simon, Horst",
        "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems",
        SIAM_MATRIX,
        2000,
    ),
    "hutchinson1989stochastic": Reference(
        "article",
        "Hutchinson, M. F.",
        "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
        "Communications in Statistics -- Simulation and Computation",
        1989,
    ),
    "ghorbani2019investigation": Reference(
        "inproceedings",
        "Ghorbani, Behrooz and Krishnan, Shankar and Xiao, Ying",
        "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
        ICML,
        2019,
    ),
    "ubaru2017fast": Reference(
        "article",
        "Ubaru, Shashanka and Chen, Jie and Saad, Yousef",
        "Fast Estimation of $tr(f(A))$ via Stochastic Lanczos Quadrature",
        SIAM_MATRIX,
        2017,
        {"volume": "38", "number": "4", "pages": "1075--1099", "doi": "10.1137/16M1104974"},
    ),
    "keskar2017large": Reference(
        "inproceedings",
        "Keskar, Nitish Shirish and Mudigere, Dheevatsa and Nocedal, Jorge and Smelyanskiy, Mikhail and Tang, Ping Tak "
        "Peter",
        "On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima",
        ICLR,
        2017,
    ),
    "foret2021sharpness": Reference(
        "inproceedings",
        "Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam",
        "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        ICLR,
        2021,
    ),
    "kwon2021asam": Reference(
        "inproceedings",
        "Kwon, Jungmin and Kim, Jeongseop and Park, Hyunseo and Choi, In Kwon",
        "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
        ICML,
        2021,
    ),
    "andriushchenko2023modern": Reference(
        "inproceedings",
        r"Andriushchenko, Maksym and Croce, Francesco and M{\"u}ller, Maximilian and Hein, Matthias and Flammarion, "
        "Nicolas",
        "A Modern Look at the Relationship between Sharpness and Generalization",
        ICML,
        2023,
    ),
    "jiang2020fantastic": Reference(
        "inproceedings",
        "Jiang, Yiding and Neyshabur, Behnam and Mobahi, Hossein and Krishnan, Dilip and Bengio, Samy",
        "Fantastic Generalization Measures and Where to Find Them",
        ICLR,
        2020,
    ),
    "petzka2021relative": Reference(
        "inproceedings",
        "Petzka, Henning and Kamp, Michael and Adilova, Linara and Sminchisescu, Cristian and Boley, Mario",
        "Relative Flatness and Generalization",
        NEURIPS,
        2021,
        {"volume": "34"},
    ),
    "liang2019fisher": Reference(
        "inproceedings",
        "Liang, Tengyuan and Poggio, Tomaso and Rakhlin, Alexander and Stokes, James",
        "Fisher-Rao Metric, Geometry, and Complexity of Neural Networks",
        "International Conference on Artificial Intelligence and Statistics",
        2019,
    ),
    "huang2020understanding": Reference(
        "inproceedings",
        "Huang, W. Ronny and Emam, Zeyad and Goldblum, Micah and Fowl, Liam and Terry, Justin K. and Huang, Furong and "
        "Goldstein, Tom",
        "Understanding Generalization Through Visualizations",
        "Proceedings on ``I Can't Believe It's Not Better!'' at NeurIPS Workshops",
        2020,
    ),
    "nagarajan2019generalization": Reference(
        "misc",
        "Nagarajan, Vaishnavh and Kolter, J. Zico",
        "Generalization in Deep Networks: The Role of Distance from Initialization",
        "arXiv:1901.01672",
        2019,
    ),
    "cohen2021gradient": Reference(
        "inproceedings",
        "Cohen, Jeremy M. and Kaur, Simran and Li, Yuanzhi and Kolter, J. Zico and Talwalkar, Ameet",
        "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        ICLR,
        2021,
    ),
    "cohen2022adaptive": Reference(
        "misc",
        "Cohen, Jeremy M. and Ghorbani, Behrooz and Krishnan, Shankar and Agarwal, Naman and Medapati, Sourabh and "
        "Badura, Michal and Suo, Daniel and Cardoze, David and Nado, Zachary and Dahl, George E. and Gilmer, Justin",
        "Adaptive Gradient Methods at the Edge of Stability",
        "arXiv:2207.14484",
        2022,
    ),
    "stein1999interpolation": Reference(
        "book",
        "Stein, Michael L.",
        "Interpolation of Spatial Data: Some Theory for Kriging",
        "Springer",
        1999,
    ),
    "cohn1996neural": Reference(
        "article",
        "Cohn, David A.",
        "Neural Network Exploration Using Optimal Experiment Design",
        "Neural Networks",
        1996,
    ),
    "wilks1941determination": Reference(
        "article",
        "Wilks, S. S.",
        "Determination of Sample Sizes for Setting Tolerance Limits",
        "The Annals of Mathematical Statistics",
        1941,
        {"volume": "12"},
    ),
    "rosen1997sampling": Reference(
        "article",
        r"Ros{\'e}n, Bengt",
        "On sampling with probability proportional to size",
        "Journal of Statistical Planning and Inference",
        1997,
    ),
    "deville1992calibration": Reference(
        "article",
        r"Deville, Jean-Claude and S{\"a}rndal, Carl-Erik",
        "Calibration Estimators in Survey Sampling",
        "Journal of the American Statistical Association",
        1992,
        {"volume": "87"},
    ),
    "edelsbrunner2002topological": Reference(
        "article",
        "Edelsbrunner, Herbert and Letscher, David and Zomorodian, Afra",
        "Topological Persistence and Simplification",
        r"Discrete \& Computational Geometry",
        2002,
    ),
    "entezari2022role": Reference(
        "inproceedings",
        "Entezari, Rahim and Sedghi, Hanie and Saukh, Olga and Neyshabur, Behnam",
        "The Role of Permutation Invariance in Linear Mode Connectivity of Neural Networks",
        ICLR,
        2022,
    ),
    "frankle2020linear": Reference(
        "inproceedings",
        "Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel M. and Carbin, Michael",
        "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
        ICML,
        2020,
    ),
}

# As in the measures' own docstrings, without what only argues against one.
OF_MEASURES: dict[str, tuple[str, ...]] = {
    "lambda_max": ("wu2000thick",),
    "trace": ("hutchinson1989stochastic", "yao2020pyhessian"),
    "filter_curvature": ("li2018visualizing",),
    "volume_epsilon": ("huang2020understanding", "li2018visualizing"),
    "keskar_epsilon": ("keskar2017large",),
    "sam": ("foret2021sharpness", "andriushchenko2023modern"),
    "asam": ("kwon2021asam", "andriushchenko2023modern"),
    "sam_logit_normalized": ("foret2021sharpness", "andriushchenko2023modern"),
    "asam_logit_normalized": ("kwon2021asam", "andriushchenko2023modern"),
    "average_perturbation": ("jiang2020fantastic",),
    "average_perturbation_adaptive": ("jiang2020fantastic",),
    "relative_flatness": ("petzka2021relative",),
    "fisher_rao": ("liang2019fisher",),
    "weight_norm": ("jiang2020fantastic",),
    "distance_from_init": ("nagarajan2019generalization",),
}
