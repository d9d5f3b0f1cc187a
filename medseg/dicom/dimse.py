"""DIMSE: the node that a URL names, and associations with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from medseg.project import UserError

AE_TITLE = "MEDSEG"
"""How we introduce ourselves to a node."""

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60


@dataclass(frozen=True)
class Node:
    """A DICOM node (application entity) on the network.

    Attributes:
        url: As the user wrote it, for messages and for telling nodes apart.
        title: Its AE title, at most 16 characters.
        host: Host name or address.
        port: TCP port.
    """

    url: str
    title: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str, *, field: str) -> Node:
        """The node that ``dicom://AETITLE@host:port`` names; an IPv6 address in brackets.

        Args:
            url: The URL.
            field: The parameter that holds it, for the message.

        Raises:
            UserError: The URL has another form.
        """
        match = re.fullmatch(r"dicom://([^@/]{1,16})@(\[[^\]]+\]|[^:/@]+):(\d+)/?", url)
        if match is None:
            raise UserError(f"{field}: {url} is no DICOM node: write dicom://AETITLE@host:port.")
        return cls(url, match[1], match[2].strip("[]"), int(match[3]))

    @contextmanager
    def associate(self, sop_classes: Iterable[str]) -> Iterator[Association]:
        """An association with the node, released at the end of the block.

        Connecting may take 10 s, each answer 60 s.

        Args:
            sop_classes: UIDs of the SOP classes to propose, all in explicit VR little endian. The
                node may accept a part of them.

        Yields:
            The association, established.

        Raises:
            UserError: The node cannot be reached, or refuses us.
        """
        entity = AE(ae_title=AE_TITLE)
        entity.acse_timeout = entity.connection_timeout = _CONNECT_SECONDS
        entity.dimse_timeout = _ANSWER_SECONDS
        for sop_class in sorted(set(sop_classes)):
            entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
        association = entity.associate(self.host, self.port, ae_title=self.title)
        if not association.is_established:
            raise UserError(
                f"the DICOM node {self.url} accepts no association from {AE_TITLE}: check host, "
                f"port and AE title, and that the node knows {AE_TITLE}."
            )
        try:
            yield association
        finally:
            association.release()
