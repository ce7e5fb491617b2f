# Install rules: headers, libraries, programs, the CMake package and two pkg-config files.
#
#   find_package(thinwire)                  thinwire::thinwire (and thinwire::core); finds LibTorch
#   find_package(thinwire COMPONENTS core)  thinwire::core alone, no LibTorch needed
#   pkg-config thinwire | thinwire-core

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/thinwire)

# Programs are what launch/ builds as executables.
get_property(launch_targets DIRECTORY ${PROJECT_SOURCE_DIR}/launch PROPERTY BUILDSYSTEM_TARGETS)
set(programs "")
foreach(target ${launch_targets})
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    list(APPEND programs ${target})
  endif()
endforeach()

# Nothing needs LD_LIBRARY_PATH: a library finds its neighbours beside itself, and LibTorch where it
# was at build time. A program that links another LibTorch itself has loaded that one by then.
file(RELATIVE_PATH library_folder /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
set_target_properties(thinwire_core PROPERTIES INSTALL_RPATH $ORIGIN)
set_target_properties(thinwire PROPERTIES INSTALL_RPATH "$ORIGIN;${THINWIRE_TORCH_ROOT}/lib")
if(programs)
  set_target_properties(${programs} PROPERTIES
    INSTALL_RPATH "$ORIGIN/${library_folder};${THINWIRE_TORCH_ROOT}/lib")
  install(TARGETS ${programs} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# Two sets of targets, so that core can be had without LibTorch.
set_target_properties(thinwire_core PROPERTIES EXPORT_NAME core)
# With the headers that thinwire_public_headers() lists.
install(TARGETS thinwire_core EXPORT thinwireCoreTargets FILE_SET HEADERS)
install(TARGETS thinwire EXPORT thinwireTargets FILE_SET HEADERS)
# Where the library looks for them: beside itself.
foreach(part thinwire_cuda thinwire_mpi thinwire_nccl)
  if(TARGET ${part})
    set_target_properties(${part} PROPERTIES INSTALL_RPATH "$ORIGIN;${THINWIRE_TORCH_ROOT}/lib")
    install(TARGETS ${part} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  endif()
endforeach()
install(EXPORT thinwireCoreTargets NAMESPACE thinwire:: DESTINATION ${package_folder})
install(EXPORT thinwireTargets NAMESPACE thinwire:: DESTINATION ${package_folder})

string(REGEX MATCH "^[0-9]+[.][0-9]+" THINWIRE_TORCH_REQUIRED ${THINWIRE_TORCH_VERSION})
configure_package_config_file(cmake/thinwireConfig.cmake.in
  ${PROJECT_BINARY_DIR}/package/thinwireConfig.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/thinwireConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/package/thinwireConfig.cmake
  ${PROJECT_BINARY_DIR}/package/thinwireConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/ThinwireTorch.cmake
  DESTINATION ${package_folder})

# The pkg-config files name folders relative to their own place, so that the installed tree can be
# moved. Only a static library needs what it was built on at the user's link.
file(RELATIVE_PATH THINWIRE_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
set(THINWIRE_PC_STATIC_REQUIRES "")
if(NOT BUILD_SHARED_LIBS)
  set(THINWIRE_PC_STATIC_REQUIRES "fmt spdlog libhwy libxxhash")
endif()
set(torch_libraries torch torch_cpu c10)
if(THINWIRE_TORCH_HAS_CUDA)
  list(APPEND torch_libraries torch_cuda c10_cuda)
endif()
list(TRANSFORM torch_libraries PREPEND "-l")
list(JOIN torch_libraries " " THINWIRE_PC_TORCH_LIBRARIES)
foreach(name thinwire thinwire-core)
  configure_file(cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/package/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/package/${name}.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()

install(DIRECTORY launch/slurm DESTINATION ${CMAKE_INSTALL_DATADIR}/thinwire)
install(FILES LICENSE CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
