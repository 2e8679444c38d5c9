"""One chapter at every point of a grid, beside the book: `python -m press sweep` writes the config and starts it."""


include: "Snakefile"


CHAPTER = config["chapter"]
POINTS = config["points"]  # each point's parameters, by the name of its folder
# One wildcard for each parameter: a wildcard that held them all, with a comma, would not reach a Slurm job whole.
NAMES = list(next(iter(POINTS.values())))
FOLDER = f"{build}/sweeps/{CHAPTER}/" + ",".join(f"{name}={{of_{name}}}" for name in NAMES)


def folder_of(wildcards):
    return FOLDER.format(**dict(wildcards.items()))


def parameters_of(wildcards):
    return POINTS[Path(folder_of(wildcards)).name]


def profile_of(wildcards):
    return parameters_of(wildcards).get("profile", PROFILE)


rule sweep:
    default_target: True
    input:
        [f"{build}/sweeps/{CHAPTER}/{point}/{CHAPTER}.json" for point in POINTS],


rule point:
    input:
        lambda w: reads(CHAPTER, profile_of(w)),
    output:
        f"{FOLDER}/{CHAPTER}.ipynb",
        f"{FOLDER}/{CHAPTER}.json",
    params:
        folder=folder_of,
        given=lambda w: [word for name, value in parameters_of(w).items() for word in ("-p", name, value)],
        claims=statements(CHAPTER),
        made_of=lambda w: digest(CHAPTER),
    wildcard_constraints:
        **{f"of_{name}": "[^/,]+" for name in NAMES},
    resources:
        gpu=lambda w: gpus(profile_of(w), parameters_of(w).get("device", "auto")),
    shell:
        "{PYTHON:q} -m press chapter {CHAPTER} --folder {params.folder:q} {params.given:q}"
