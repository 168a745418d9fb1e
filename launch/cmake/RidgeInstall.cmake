# `cmake --install`: the program, the library with its headers, and the package that find_package(Ridgeline) reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(RIDGE_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/Ridgeline)

install(TARGETS ridge RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS ridgeline ridge_dependencies EXPORT RidgelineTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY core kernels parallel optim lora quant inference launch
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ridgeline FILES_MATCHING PATTERN "*.h")
install(EXPORT RidgelineTargets NAMESPACE Ridgeline:: DESTINATION ${RIDGE_PACKAGE_DIR})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/RidgelineConfig.cmake.in
  ${PROJECT_BINARY_DIR}/RidgelineConfig.cmake INSTALL_DESTINATION ${RIDGE_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/RidgelineConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/RidgelineConfig.cmake ${PROJECT_BINARY_DIR}/RidgelineConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/RidgeFind.cmake
        DESTINATION ${RIDGE_PACKAGE_DIR})
