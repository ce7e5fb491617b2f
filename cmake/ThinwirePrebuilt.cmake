# A wheel of what lies in another build folder, THINWIRE_PREBUILT: nothing is compiled.
install(CODE "execute_process(COMMAND \"${CMAKE_COMMAND}\" --install \"${THINWIRE_PREBUILT}\"
  --component wheel --prefix \"\${CMAKE_INSTALL_PREFIX}\" COMMAND_ERROR_IS_FATAL ANY)"
  COMPONENT wheel)
