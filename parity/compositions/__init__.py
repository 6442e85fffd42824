"""Every public function under every transform: the value is right, or the documented error is raised."""
