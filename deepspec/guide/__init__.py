"""The guide: how deepspec is used, as Markdown files that ship with the package, one per topic.

    deepspec guide ──► read, summary      the files of this folder, in the order of TOPICS

To add a topic: a file `<topic>.md` whose first line is `# <topic>: <summary>`, and its name in TOPICS.
"""

from importlib import resources

TOPICS = (
    "demo",
    "recipes",
    "data",
    "traffic",
    "targets",
    "states",
    "training",
    "judging",
    "serving",
    "services",
    "storage",
    "operations",
    "nights",
    "dashboard",
    "benches",
    "troubleshooting",
)
"""Every topic, in the order in which a run meets them."""


def read(topic: str) -> str:
    """The Markdown of one of TOPICS.

    Raises:
        FileNotFoundError: it is none of them.
    """
    return (resources.files("deepspec") / "guide" / f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """What a topic is about, in a few words: its title without the name."""
    title = read(topic).partition("\n")[0]
    return title.partition(":")[2].strip()
