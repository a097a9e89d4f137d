import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import android.content.Context
import android.graphics.Bitmap
import java.nio.ByteBuffer
import org.json.JSONArray

class Classifier(context: Context) {
    private val env = OrtEnvironment.getEnvironment()
    private val session = env.createSession(context.assets.open("PHOTO.onnx").readBytes())
    private val labels = JSONArray(session.metadata.customMetadata.getValue("labels"))

    /** The most probable label of an upright photograph without transparency, of any size. */
    fun classify(photo: Bitmap): String {
        val argb = IntArray(photo.width * photo.height)
        photo.getPixels(argb, 0, photo.width, 0, 0, photo.width, photo.height)
        val rgb = ByteBuffer.allocateDirect(3 * argb.size)
        for (pixel in argb)
            for (shift in intArrayOf(16, 8, 0)) rgb.put((pixel shr shift).toByte())
        rgb.rewind()
        val shape = longArrayOf(1, photo.height.toLong(), photo.width.toLong(), 3)
        OnnxTensor.createTensor(env, rgb, shape, OnnxJavaType.UINT8).use { image ->
            session.run(mapOf("image" to image)).use { outputs ->
                val probabilities = (outputs["probabilities"].get().value as Array<FloatArray>)[0]
                return labels.getString(probabilities.indices.maxBy { probabilities[it] })
            }
        }
    }
}
