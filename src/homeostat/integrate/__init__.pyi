from .exposition import endpoint as endpoint, prometheus as prometheus
