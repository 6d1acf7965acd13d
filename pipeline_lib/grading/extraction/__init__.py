"""Final answers in a policy's raw text: thoughts cut, marks found, announcements in words read and trimmed."""
