# minimamba::mpi, for programs that run on several ranks and include minimamba/mpi.hpp: minimamba::minimamba, and MPI as it
# is found on the system (OpenMPI or MPICH).
find_package(MPI QUIET COMPONENTS CXX)
# CMake makes the target MPI::MPI_CXX before it knows whether there is an MPI.
if(MPI_CXX_FOUND AND NOT TARGET minimamba::mpi)
  add_library(minimamba::mpi INTERFACE IMPORTED GLOBAL)
  target_link_libraries(minimamba::mpi INTERFACE minimamba::minimamba MPI::MPI_CXX)
  # OpenMPI's C++ bindings, which its headers would include, are not used.
  target_compile_definitions(minimamba::mpi INTERFACE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
endif()
