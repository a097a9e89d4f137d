import CoreGraphics
import Foundation
import OnnxRuntimeBindings  // onnxruntime_objc with CocoaPods

let session = try ORTSession(
    env: ORTEnv(loggingLevel: .warning), modelPath: "PHOTO.onnx", sessionOptions: nil)

/// Probabilities of the labels of an upright photograph of any size, in the order of labels.json.
func probabilities(of photo: CGImage) throws -> [Float] {
    let (width, height) = (photo.width, photo.height)
    let context = CGContext(
        data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
        space: photo.colorSpace?.model == .rgb ? photo.colorSpace! : CGColorSpaceCreateDeviceRGB(),
        bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    let all = CGRect(x: 0, y: 0, width: width, height: height)
    context.setFillColor(CGColor(gray: 1, alpha: 1))  // under what is transparent
    context.fill(all)
    context.draw(photo, in: all)
    let rgba = context.data!.assumingMemoryBound(to: UInt8.self)
    let rgb = NSMutableData(length: 3 * width * height)!
    let pixels = rgb.mutableBytes.assumingMemoryBound(to: UInt8.self)
    for at in 0..<rgb.length { pixels[at] = rgba[at + at / 3] }
    let image = try ORTValue(
        tensorData: rgb, elementType: .uInt8, shape: [1, height as NSNumber, width as NSNumber, 3])
    let outputs = try session.run(
        withInputs: ["image": image], outputNames: ["probabilities"], runOptions: nil)
    let data = try outputs["probabilities"]!.tensorData() as Data
    return data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
}
