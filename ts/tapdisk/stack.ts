/** Drivers that can open an image, by the names that tapdisk gives them. */
export const drivers = ["vhd", "aio"] as const;

/** A driver's name. */
export type DriverName = (typeof drivers)[number];

/** One image of a stack, as it is named: the driver that opens it, and the name that the driver knows it by. */
export interface ImageName {
  readonly driver: DriverName;
  /** A path. */
  readonly name: string;
}

/** A description of a virtual disk that names no image. */
export class StackError extends Error {
  override readonly name = "StackError";
}

/**
 * The stack of images, leaf first, that a description such as `vhd:/path` or `aio:/path` names. Parents are not part of
 * it: each child says where its parent is.
 * @throws StackError
 */
export function parseStack(description: string): [ImageName, ...ImageName[]] {
  const colon = description.indexOf(":");
  if (colon < 0) {
    throw new StackError(`'${description}' has no driver: expected DRIVER:PATH, for example vhd:/path`);
  }
  const driver = drivers.find((known) => known === description.slice(0, colon));
  if (driver === undefined) {
    throw new StackError(
      `unknown driver '${description.slice(0, colon)}' in '${description}': expected one of ${drivers.join(", ")}`,
    );
  }
  const name = description.slice(colon + 1);
  if (name === "") {
    throw new StackError(`'${description}' has no path behind the driver`);
  }
  return [{ driver, name }];
}
