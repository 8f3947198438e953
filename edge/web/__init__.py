"""A web page, an image stream, metrics and a health check of a running frame loop; needs the extra `serve`."""

from rws.edge.common.extras import require

with require("serve"):
    import aiohttp  # noqa: F401
    import prometheus_client  # noqa: F401

from rws.edge.web.server import PageServer

__all__ = ["PageServer"]
