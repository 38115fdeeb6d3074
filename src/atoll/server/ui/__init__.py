"""The web page: what browsers are shown below /ui, over the same gateway as the API."""
