"""A stage whose libraries speak."""

from kfp import dsl


@dsl.component(install_kfp_package=False)
def talkative() -> None:
    """Logs as libraries do."""
    import logging

    from medseg.project import progress, stage

    with stage("talkative"):
        logging.info("said to the root logger")
        logging.getLogger("library").info("said by a library")
        logging.getLogger("library.part").setLevel(logging.DEBUG)
        logging.getLogger("library.part").info("said by one with a level of its own")
        logging.getLogger("library").warning("a warning")
        progress("ours")
