"""Teachers: found, checked, loaded, frozen and run; one, several mixed, or stored."""
