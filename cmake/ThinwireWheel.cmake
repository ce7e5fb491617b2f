# What a wheel holds besides the Python files (pyproject.toml), as the install component "wheel":
#
#   thinwire/_C...so          the module            thinwire/bin/thinwire   the program
#   thinwire/lib/             both libraries and, with THINWIRE_WHEEL, what they need of the system
#   thinwire/_built.py        the torch version that it was built with
#
# Nothing of LibTorch: the libraries of the torch that is imported, or lies beside, are used. Of any
# build, so that the tests need not compile everything once more (THINWIRE_PREBUILT below).

file(WRITE ${PROJECT_BINARY_DIR}/package/_built.py
  "\"\"\"What this installation was built with.\"\"\"\n\nTORCH_VERSION = \"${THINWIRE_TORCH_VERSION}\"\n")
install(FILES ${PROJECT_BINARY_DIR}/package/_built.py
  DESTINATION thinwire COMPONENT wheel EXCLUDE_FROM_ALL)

# As files, with the paths in them set afterwards: a target has one path for every kind of install.
function(thinwire_wheel_binary target folder rpath)
  set(file $<TARGET_FILE:${target}>)
  set(name $<TARGET_FILE_NAME:${target}>)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "SHARED_LIBRARY")
    set(name $<TARGET_SONAME_FILE_NAME:${target}>)
  endif()
  if(THINWIRE_WHEEL)
    # A file can be given another path only where it has one, and one that is no shorter.
    string(REPLACE "\\$" "$" path "${rpath}")
    string(REPLACE ":" ";" path "${path}")
    set_property(TARGET ${target} APPEND PROPERTY BUILD_RPATH ${path})
  endif()
  install(PROGRAMS ${file} DESTINATION ${folder} RENAME ${name} COMPONENT wheel EXCLUDE_FROM_ALL)
  install(CODE "file(RPATH_SET FILE \"\${CMAKE_INSTALL_PREFIX}/${folder}/${name}\"
    NEW_RPATH \"${rpath}\")" COMPONENT wheel EXCLUDE_FROM_ALL)
endfunction()
thinwire_wheel_binary(thinwire_core thinwire/lib [[\$ORIGIN]])
thinwire_wheel_binary(thinwire thinwire/lib [[\$ORIGIN:\$ORIGIN/../../torch/lib]])
thinwire_wheel_binary(thinwire_program thinwire/bin
  [[\$ORIGIN/../lib:\$ORIGIN/../../torch/lib]])
thinwire_wheel_binary(thinwire_python thinwire [[\$ORIGIN/lib:\$ORIGIN/../torch/lib]])
foreach(part thinwire_mpi thinwire_nccl)
  if(TARGET ${part})
    thinwire_wheel_binary(${part} thinwire/lib [[\$ORIGIN:\$ORIGIN/../../torch/lib]])
  endif()
endforeach()
if(TARGET thinwire_cuda)
  install(PROGRAMS $<TARGET_FILE:thinwire_cuda> DESTINATION thinwire/lib
    COMPONENT wheel EXCLUDE_FROM_ALL)
endif()

# The system's libraries, which a user's machine lacks. The old kind of path in the library that
# needs them holds for what they need in turn, hence --disable-new-dtags.
if(THINWIRE_WHEEL)
  foreach(target thinwire_core thinwire thinwire_program thinwire_python thinwire_mpi thinwire_nccl)
    if(NOT TARGET ${target})
      continue()
    endif()
    target_link_options(${target} PRIVATE -Wl,--disable-new-dtags)
  endforeach()
  foreach(library libspdlog.so libfmt.so libhwy.so libxxhash.so)
    find_library(path_of_${library} ${library} REQUIRED)
    execute_process(COMMAND ${CMAKE_OBJDUMP} -p ${path_of_${library}} OUTPUT_VARIABLE headers
      COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCH "SONAME +([^\n ]+)" _ "${headers}")
    file(REAL_PATH ${path_of_${library}} file)
    install(FILES ${file} DESTINATION thinwire/lib RENAME ${CMAKE_MATCH_1}
      COMPONENT wheel EXCLUDE_FROM_ALL)
  endforeach()
endif()
