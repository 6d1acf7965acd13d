"""What runs keep, and how what nobody needs any more goes: marked from what is on record, then swept."""
