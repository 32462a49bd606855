"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
  """What came, what was wanted, what to do: printed as one line, exit code 2, no traceback.

  Everything else that is raised is our own bug and keeps its traceback.
  """
