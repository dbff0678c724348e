"""The site: the pages of docs/ and the repository's own, and a reference that the code makes. `make site` builds it."""
