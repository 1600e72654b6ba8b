"""The vocabulary: Kubernetes objects, our CRDs, annotations, and the messages between processes.

Everything here is a frozen msgspec Struct or a pure function, and imports nothing of the other rooms.

Rules that hold for every object Struct:

* A field that a Struct does not know is ignored when read, so that a newer cluster never stops an older program.
  Therefore no Struct is ever written back whole: creation apart, writes are JSON merge patches of the fields meant (see
  the store port in `runtime.store.port`).
* A field that the server may leave out has a default here, so that one odd object cannot make a whole list unreadable.
* Values are checked as the CRD's schema does (enums, ranges), so that a store without a schema refuses the same
  objects.
"""
